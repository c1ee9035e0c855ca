// Images that guide what is generated: one for each ControlNet, and one for the IP-Adapter.

import { $, forget, make, opened, picker, setRange, slider, url } from "./dom.js";

let guides = [];

/** Offer those that a model takes. */
export function offer({ control_names: nets, style }) {
  guides.forEach(forget);
  guides = [...nets.map((name) => guide(name, 2)), ...(style ? [guide("Style", 1)] : [])];
  $("guides").replaceChildren($("guides").firstElementChild, ...guides.map(({ box }) => box));
  $("guides").hidden = !guides.length;
}

/** `most` is the largest strength: 1 for a style. */
function guide(title, most) {
  const one = { most, box: make("fieldset", { className: "drop" }) };
  const file = make("input", { type: "file", accept: $("file").accept, hidden: true });
  const choose = make("button", { type: "button", textContent: "Choose", ariaLabel: `Choose an image: ${title}` });
  const remove = make("button", { type: "button", textContent: "Remove", ariaLabel: `Remove the image: ${title}` });
  const image = make("img", { alt: `The image for ${title}` });
  const [label, strength] = slider("Strength", { min: 0, max: most, value: 1 });
  one.strength = strength;
  one.take = async (blob) => {
    one.last = blob;
    if (blob) await opened(blob);
    if (one.last !== blob) return; // another was chosen meanwhile
    one.blob = blob;
    if (blob) image.src = url(one, blob);
    else forget(one);
    image.hidden = remove.hidden = label.hidden = !blob;
    if (blob) $("guides").open = true;
  };
  one.take(null);
  picker(choose, file, one.take);
  remove.addEventListener("click", () => { one.take(null); choose.focus(); });
  one.box.append(make("legend", { textContent: title }), image, choose, file, " ", remove, label);
  return one;
}

/** The one that an element belongs to. */
export const at = (element) => guides.find(({ box }) => box.contains(element));

/** Take over those of an earlier request. */
export async function fill({ control_scale: scales, style_strength: strength }, { control, style }) {
  for (const [index, one] of guides.entries()) {
    const [blob, value] = one.most === 1 ? [style, strength] : [control?.[index], scales?.[index]];
    setRange(one.strength, value || 1);
    await one.take((value !== 0 && blob) || null);
  }
}

/** Images as they are sent, and their fields. A ControlNet without an image has that of another, and no effect. */
export function taken() {
  const nets = guides.filter(({ most }) => most > 1);
  const style = guides.find(({ most, blob }) => most === 1 && blob);
  const first = nets.find(({ blob }) => blob);
  const fields = {};
  if (first) fields.control_scale = nets.map(({ blob, strength }) => (blob ? Number(strength.value) : 0));
  if (style) fields.style_strength = Number(style.strength.value);
  return { images: { control: first ? nets.map(({ blob }) => blob ?? first.blob) : null, style: style?.blob ?? null }, fields };
}
