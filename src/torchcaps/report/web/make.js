"use strict";

/** An element with attributes, styles and listeners (`onclick`), and children; texts stay texts. */
function make(tag, attributes = {}, ...children) {
  const { style = {}, ...others } = attributes;
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(others)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  for (const [name, value] of Object.entries(style)) node.style.setProperty(name, value);
  node.append(...children);
  return node;
}

