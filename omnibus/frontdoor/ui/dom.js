// Making and updating elements. Text is only ever set as text: names, prompts and errors are others' words.

const SVG = "http://www.w3.org/2000/svg";

/** An element. `props`: attributes; `data`: data attributes; null and false leave one out. Children: elements or texts. */
export function h(tag, props = {}, ...children) {
  return filled(document.createElement(tag), props, children);
}

/** The same in SVG. */
export function svg(tag, props = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), props, children);
}

function filled(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (name === "data") Object.assign(element.dataset, value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Make the children of `target` those of `wanted`, in place: what stays keeps its focus, its scroll and its selection. */
export function update(target, ...wanted) {
  const next = document.createDocumentFragment();
  next.append(...wanted.flat(Infinity).filter(Boolean));
  sync(target, next);
}

function sync(target, wanted) {
  const old = [...target.childNodes];
  const next = [...wanted.childNodes];
  next.forEach((node, at) => {
    const present = old[at];
    if (present === undefined) target.append(node);
    else if (alike(present, node)) become(present, node);
    else present.replaceWith(node);
  });
  old.slice(next.length).forEach((node) => node.remove());
}

function alike(one, other) {
  return one.nodeType === other.nodeType && one.nodeName === other.nodeName && keyOf(one) === keyOf(other);
}

function keyOf(node) {
  return node.nodeType === Node.ELEMENT_NODE ? node.dataset.key : undefined;
}

function become(present, wanted) {
  if (present.nodeType === Node.TEXT_NODE) {
    if (present.data !== wanted.data) present.data = wanted.data;
    return;
  }
  for (const { name } of [...present.attributes]) if (!wanted.hasAttribute(name)) present.removeAttribute(name);
  for (const { name, value } of wanted.attributes) {
    if (present.getAttribute(name) !== value) present.setAttribute(name, value);
  }
  // Attributes say nothing of these once somebody has chosen, and options that move take their choice along.
  const choice = present.tagName === "SELECT" ? { value: wanted.value } : present.type === "radio" ? { checked: wanted.checked } : {};
  sync(present, wanted);
  Object.assign(present, choice);
}

/** Call `actions[name](dataset)` for a click, or Enter and Space on what is no button, on an element with `data-action`. */
export function listen(root, actions) {
  const act = (event) => {
    const element = event.target.closest("[data-action]");
    if (element === null || !root.contains(element) || element.disabled) return;
    if (event.type === "keydown") {
      if (element.tagName === "BUTTON" || !["Enter", " "].includes(event.key)) return;
      event.preventDefault();
    }
    actions[element.dataset.action]?.({ ...element.dataset }, element);
  };
  root.addEventListener("click", act);
  root.addEventListener("keydown", act);
}
