// The loss curve of a prompt as SVG, drawn at the width that there is, with its figures as a sentence and as a table.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 220;
const EDGE = { top: 26, right: 14, bottom: 40, left: 44 };
let numbers = 0;

/** A figure of the losses that `GET /v1/prompts/NAME` gives, or a sentence where there are none. */
export function lossCurve(prompt) {
  const { training, held_out: heldOut, note } = prompt.loss_curve;
  if (!training.length && !heldOut.length) return element("p", { class: "faint" }, note ?? "No loss history is saved with this prompt.");
  const lines = [
    { kind: "before", name: "held-out, frozen model alone", level: prompt.held_out_loss_before },
    { kind: "after", name: "held-out, with the prompt", level: prompt.held_out_loss_after },
  ].filter((one) => one.level !== null);
  const figure = element("figure");
  const place = element("div", { class: "plot" });
  figure.append(element("figcaption", {}, sentence(training, heldOut)), place, legend(training, heldOut, lines), table(training, heldOut));
  const text = [sentence(training, heldOut), ...lines.map((one) => `${one.name}: ${one.level.toFixed(3)}.`)].join(" ");
  const draw = () => place.clientWidth && place.replaceChildren(picture(place.clientWidth, training, heldOut, lines, text));
  new ResizeObserver(draw).observe(place);
  return figure;
}

function sentence(training, heldOut) {
  const said = [
    ["Training loss", training],
    ["Held-out loss", heldOut],
  ].filter(([, points]) => points.length);
  return said.map(([name, points]) => `${name}: ${course(points)}.`).join(" ");
}

function course(points) {
  const [first, last] = [points[0], points.at(-1)];
  const end = `${last.loss.toFixed(3)} at step ${last.step}`;
  return points.length === 1 ? end : `${first.loss.toFixed(3)} at step ${first.step}, ${end}`;
}

function picture(width, training, heldOut, lines, text) {
  const points = [...training, ...heldOut];
  const across = ticks(Math.max(...points.map((one) => one.step)), Math.max(2, Math.floor(width / 90)), true);
  const up = ticks(Math.max(...points.map((one) => one.loss), ...lines.map((one) => one.level)), 4, false);
  const right = width - EDGE.right;
  const bottom = HEIGHT - EDGE.bottom;
  const x = (step) => EDGE.left + (step / across.end) * (right - EDGE.left);
  const y = (loss) => bottom - (loss / up.end) * (bottom - EDGE.top);
  const id = `curve-${(numbers += 1)}`;
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", "aria-labelledby": id });
  svg.append(drawn("title", { id }, `Loss over the steps of training. ${text}`));
  for (const value of up.values) {
    svg.append(drawn("line", { class: "grid", x1: EDGE.left, x2: right, y1: y(value), y2: y(value) }));
    svg.append(drawn("text", { x: EDGE.left - 6, y: y(value) + 4, "text-anchor": "end" }, up.label(value)));
  }
  for (const value of across.values) {
    svg.append(drawn("line", { class: "axis", x1: x(value), x2: x(value), y1: bottom, y2: bottom + 4 }));
    svg.append(drawn("text", { x: x(value), y: bottom + 17, "text-anchor": "middle" }, across.label(value)));
  }
  svg.append(drawn("line", { class: "axis", x1: EDGE.left, x2: right, y1: bottom, y2: bottom }));
  svg.append(drawn("text", { x: 0, y: 12 }, "loss (nats per answer token)"));
  svg.append(drawn("text", { x: (EDGE.left + right) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, "optimizer step"));
  for (const { kind, level } of lines) {
    svg.append(drawn("line", { class: `level ${kind}`, x1: EDGE.left, x2: right, y1: y(level), y2: y(level) }));
  }
  if (training.length > 1) {
    svg.append(drawn("polyline", { class: "training", points: training.map((one) => `${x(one.step)},${y(one.loss)}`).join(" ") }));
  }
  if (training.length < 40) svg.append(...training.map((one) => dot("training", x(one.step), y(one.loss), 2.5)));
  svg.append(...heldOut.map((one) => dot("held-out", x(one.step), y(one.loss), 4)));
  return svg;
}

/** Round values from 0 to at least `most`, about as many as are wanted. */
function ticks(most, wanted, areWhole) {
  const rough = (most || 1) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max([1, 2, 5, 10].find((one) => one * power >= rough * 0.999) * power, areWhole ? 1 : 0);
  const count = Math.max(Math.ceil((most || 1) / step - 1e-9), 1);
  const places = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const format = new Intl.NumberFormat("en", { minimumFractionDigits: Math.min(places, 8), maximumFractionDigits: Math.min(places, 8), notation: step >= 10000 ? "compact" : "standard" });
  return {
    end: areWhole ? Math.max(most, 1) : count * step,
    values: Array.from({ length: count + 1 }, (_, at) => at * step).filter((value) => !areWhole || value <= most),
    label: (value) => format.format(value),
  };
}

function legend(training, heldOut, lines) {
  const entries = [
    ...(training.length ? [["training", "training loss"]] : []),
    ...(heldOut.length ? [["held-out", "held-out loss"]] : []),
    ...lines.map((one) => [`level ${one.kind}`, `${one.name}: ${one.level.toFixed(3)}`]),
  ];
  const list = element("ul", { class: "legend" });
  for (const [kind, name] of entries) {
    const swatch = drawn("svg", { width: 26, height: 10, "aria-hidden": "true" });
    if (kind === "held-out") swatch.append(dot(kind, 13, 5, 4));
    else swatch.append(drawn("line", { class: kind, x1: 0, x2: 26, y1: 5, y2: 5 }));
    const item = element("li", {}, name);
    item.prepend(swatch);
    list.append(item);
  }
  return list;
}

function table(training, heldOut) {
  const steps = new Map();
  for (const [at, points] of [training, heldOut].entries()) {
    for (const { step, loss } of points) {
      if (!steps.has(step)) steps.set(step, ["", ""]);
      steps.get(step)[at] = loss.toFixed(4);
    }
  }
  const columns = [training, heldOut].map((points) => points.length > 0);
  const cells = (values) => values.filter((_, at) => columns[at]);
  const row = (name, first, values, kind) => {
    const made = element("tr");
    made.append(element("th", { scope: name }, first), ...cells(values).map((value) => element(kind, kind === "th" ? { scope: "col" } : {}, value)));
    return made;
  };
  const head = element("thead");
  head.append(row("col", "Step", ["Training loss", "Held-out loss"], "th"));
  const body = element("tbody");
  for (const [step, values] of [...steps].sort(([one], [other]) => one - other)) body.append(row("row", step, values, "td"));
  const whole = element("table");
  whole.append(head, body);
  const scroll = element("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Losses by step" });
  scroll.append(whole);
  const details = element("details");
  details.append(element("summary", {}, "The losses as a table"), scroll);
  return details;
}

function dot(kind, cx, cy, r) {
  return drawn("circle", { class: `dot ${kind}`, cx, cy, r });
}

function drawn(name, attributes, text) {
  return filled(document.createElementNS(SVG, name), attributes, text);
}

function element(name, attributes = {}, text) {
  return filled(document.createElement(name), attributes, text);
}

function filled(made, attributes, text) {
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}
