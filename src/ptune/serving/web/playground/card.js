// The card of a prompt: how it was made, and its losses. What a prompt's folder says is shown as text.

import { get } from "./ask.js";
import { lossCurve } from "./loss_curve.js";

const whole = new Intl.NumberFormat("en");
const shown = new WeakMap(); // the model whose card a place is to show

/** Shows the card of a model (of `/v1/models`) in a place: a heading, and what it stands over. */
export async function showCard(place, model) {
  shown.set(place, model);
  const parts = model.root ? await ofPrompt(model) : ofFrozen(model);
  if (shown.get(place) !== model) return; // another has been chosen meanwhile
  place.querySelector("h3").textContent = `About ${model.root ? model.id : "the frozen model"}`;
  place.querySelector("div").replaceChildren(...parts);
}

async function ofPrompt(model) {
  try {
    const prompt = await get(`v1/prompts/${encodeURIComponent(model.id)}`);
    return [facts(prompt), lossCurve(prompt)];
  } catch (error) {
    return [element("p", error.message)];
  }
}

function ofFrozen(model) {
  const way = model.chat
    ? "The text is written with its tokenizer's chat template."
    : "Its tokenizer has no chat template: it goes on with the text as it is.";
  return [element("p", `${model.id} alone, without virtual tokens. ${way}`)];
}

function facts(prompt) {
  const size = prompt.token_dim === null ? "" : ` of ${whole.format(prompt.token_dim)} numbers each`;
  const trained = count(prompt.rows_trained_on);
  const read = prompt.rows_read === null || prompt.rows_read === prompt.rows_trained_on ? "" : ` of ${count(prompt.rows_read)} read`;
  const rows = {
    "Base model": prompt.base_model,
    "Prompt encoder": prompt.encoder,
    "Virtual tokens": `${count(prompt.virtual_tokens)}${size}`,
    "Trained parameters": count(prompt.trainable_parameters),
    Template: prompt.template,
    "Training rows": trained && `${trained}${read}`,
    "Optimizer steps": count(prompt.steps),
    "Held-out loss": heldOut(prompt),
    Written: written(prompt),
  };
  const list = element("dl");
  for (const [name, value] of Object.entries(rows)) {
    if (value) list.append(element("dt", name), element("dd", value));
  }
  return list;
}

function heldOut({ held_out_loss_before: before, held_out_loss_after: after }) {
  if (before === null || after === null) return null;
  return `${before.toFixed(3)} frozen model alone, ${after.toFixed(3)} with the prompt`;
}

function written({ written: at, written_by: by }) {
  if (at === null) return null;
  const date = new Date(at * 1000);
  const time = element("time", date.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" }));
  time.dateTime = date.toISOString();
  const both = document.createDocumentFragment();
  both.append(time, by ? ` by ${by}` : "");
  return both;
}

function count(value) {
  return value === null ? null : whole.format(value);
}

function element(name, ...content) {
  const made = document.createElement(name);
  made.append(...content);
  return made;
}
