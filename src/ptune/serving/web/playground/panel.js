// One of the two panels: which prompt is asked, its answer as it comes, and how long it took.

import { answer, AskError } from "./ask.js";
import { showCard } from "./card.js";

const whole = new Intl.NumberFormat("en");

export class Panel {
  constructor(number, template) {
    this.title = `Answer ${number}`;
    this.models = new Map(); // by name; none while they are not known
    this.element = template.content.cloneNode(true).querySelector("section");
    const find = (what) => this.element.querySelector(what);
    [this.select, this.answer, this.error, this.card] = ["select", ".answer", ".error", ".card"].map(find);
    this.card.open = matchMedia("(min-width: 48.01rem)").matches; // where answers stand below each other it would part them
    find("h2").textContent = this.title;
    find("h2").id = `panel-${number}`;
    this.element.setAttribute("aria-labelledby", `panel-${number}`);
    this.select.setAttribute("aria-label", `Prompt of ${this.title.toLowerCase()}`);
    this.answer.setAttribute("aria-label", this.title);
    this.select.addEventListener("change", () => this.chosen());
  }

  /** Offers models; the one that was chosen stays chosen if it is still there. */
  offer(models, otherwise) {
    const before = this.select.value;
    this.models = new Map(models.map((one) => [one.id, one]));
    this.select.replaceChildren(
      ...models.map((one) => new Option(one.root ? one.id : "the frozen model alone", one.id)),
    );
    this.select.value = this.models.has(before) ? before : otherwise;
    this.chosen();
  }

  get model() {
    return this.models.get(this.select.value);
  }

  /** Shows the card of what is chosen. */
  chosen() {
    showCard(this.card, this.model);
  }

  /** Asks, and shows the answer as it comes. Gives a sentence on how it went. */
  async ask(text, settings, signal) {
    const model = this.model;
    const began = performance.now();
    const passed = () => (performance.now() - began) / 1000;
    const seen = { first: null, tokens: null, finish: null };
    this.begin();
    try {
      for await (const one of answer(model, text, settings, signal)) {
        if (one.text) {
          seen.first ??= passed();
          this.written.appendData(one.text);
          this.figure("first", seconds(seen.first));
        } else {
          Object.assign(seen, one);
        }
      }
    } catch (error) {
      if (error.name !== "AbortError") return this.failed(model, error);
      seen.finish = "stopped";
    } finally {
      this.answer.setAttribute("aria-busy", "false");
    }
    return this.finished(model, seen, passed());
  }

  begin() {
    this.written = document.createTextNode("");
    this.answer.replaceChildren(this.written);
    this.answer.setAttribute("aria-busy", "true");
    this.error.hidden = true;
    for (const name of ["first", "tokens", "rate", "total", "finish"]) this.figure(name, "–");
  }

  finished(model, { tokens, finish }, total) {
    if (tokens !== null) {
      this.figure("tokens", whole.format(tokens));
      this.figure("rate", (tokens / total).toFixed(1));
    }
    this.figure("total", seconds(total));
    this.figure("finish", finish ?? "–");
    if (!this.written.data && finish !== "stopped") this.say("The answer is empty.");
    const length = tokens === null ? "" : `${whole.format(tokens)} tokens in `;
    return `${this.title}, ${model.id}: ${length}${seconds(total)}, ${finish}.`;
  }

  failed(model, error) {
    const message = error instanceof AskError ? error.message : `The page failed: ${error.message}`;
    this.figure("finish", "error");
    this.say(message);
    return `${this.title}, ${model.id}: ${message}`;
  }

  say(message) {
    this.error.textContent = message;
    this.error.hidden = false;
  }

  figure(name, text) {
    this.element.querySelector(`[data-figure=${name}]`).textContent = text;
  }
}

function seconds(value) {
  return `${value.toFixed(2)} s`;
}
