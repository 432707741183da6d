// The page: what is asked, of which two, and when.

import { get } from "./ask.js";
import { Panel } from "./panel.js";

const at = (id) => document.getElementById(id);
const panels = [1, 2].map((number) => new Panel(number, at("panel")));
let stopping = null; // while answers are written: what ends them

at("panels").append(...panels.map((one) => one.element));

async function readModels() {
  try {
    const [frozen, ...prompts] = (await get("v1/models")).data;
    at("frozen").textContent = frozen.id;
    panels[0].offer([...prompts, frozen], (prompts[0] ?? frozen).id);
    panels[1].offer([...prompts, frozen], frozen.id);
    notice(prompts.length ? "" : "No prompt is served yet, so the frozen model alone answers. Start the server with --prompts DIR, or with --prompts-root DIR and put prompt folders into it; then read the list of prompts again, below.");
  } catch (error) {
    notice(`The prompts cannot be listed. ${error.message}`);
  }
}

function notice(text) {
  at("notice").textContent = text;
  at("notice").hidden = !text;
}

async function ask() {
  if (stopping || !panels.every((one) => one.model)) return;
  const settings = {
    temperature: at("temperature").valueAsNumber,
    most: at("most").valueAsNumber,
    seed: at("seed").value === "" ? null : at("seed").valueAsNumber,
  };
  stopping = new AbortController();
  busy(true);
  at("status").textContent = "Asking …";
  const said = await Promise.all(panels.map((one) => one.ask(at("text").value, settings, stopping.signal)));
  stopping = null;
  busy(false);
  at("status").textContent = said.join(" ");
}

/** Buttons stay where the keyboard's focus is: what does nothing now is marked so, not taken out. */
function busy(yes) {
  at("go").setAttribute("aria-disabled", String(yes));
  at("stop").setAttribute("aria-disabled", String(!yes));
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
at("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    at("ask").requestSubmit();
  }
});
at("stop").addEventListener("click", () => stopping?.abort());
at("reload").addEventListener("click", readModels);
readModels();
