"""The demo's own data: customer messages and the support tickets they amount to."""
