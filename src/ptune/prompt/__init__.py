"""From a configuration to an initialised prompt encoder for a frozen model."""
