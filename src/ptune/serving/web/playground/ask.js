// Asks the server and reads its answers. Knows nothing of the page.

const here = new URL(location.pathname, location.origin); // without what a person may have typed before an @

/** An error to be shown as it is. */
export class AskError extends Error {}

async function send(path, options = {}) {
  let response;
  try {
    response = await fetch(new URL(path, here), { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new AskError("The server cannot be reached.");
  }
  if (response.ok) return response;
  if (response.status === 401) throw new AskError("The server wants an API key. Load this page again to give it.");
  throw new AskError(await messageOf(response));
}

async function messageOf(response) {
  try {
    const { error } = await response.json();
    if (typeof error.message === "string") return error.message;
  } catch {
    // A proxy's page, say.
  }
  return `The server answered with status ${response.status}.`;
}

/** What a GET of a path gives. */
export async function get(path) {
  return (await send(path)).json();
}

/**
 * Asks one model for an answer, and gives what comes of it: `{text}`, `{finish}` and `{tokens}`.
 *
 * `model` is a card of `/v1/models`; one without chats is given the text as it is.
 */
export async function* answer(model, text, settings, signal) {
  const asked = {
    model: model.id,
    temperature: settings.temperature,
    max_tokens: settings.most,
    stream: true,
    stream_options: { include_usage: true },
  };
  if (settings.seed !== null) asked.seed = settings.seed;
  if (model.chat) asked.messages = [{ role: "user", content: text }];
  else asked.prompt = text;
  const response = await send(model.chat ? "v1/chat/completions" : "v1/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(asked),
    signal,
  });
  for await (const chunk of events(response.body)) {
    if (chunk.error) throw new AskError(chunk.error.message);
    const choice = chunk.choices[0];
    const piece = choice?.delta?.content ?? choice?.text;
    if (piece) yield { text: piece };
    if (choice?.finish_reason) yield { finish: choice.finish_reason };
    if (chunk.usage) yield { tokens: chunk.usage.completion_tokens };
  }
}

/** The JSON of each server-sent event; the last one, `[DONE]`, says that the answer is whole. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let complete = false;
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done && complete) return;
      if (done) throw new AskError("The connection ended before the answer was complete.");
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const data = part.replace(/^data: /, "");
        if (data === "[DONE]") complete = true;
        else yield JSON.parse(data);
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof AskError) throw error;
    throw new AskError(error instanceof SyntaxError ? "The answer came in a form that cannot be read." : "The connection to the server was lost.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
