// The canvas on which every editor draws: view, pointers, keys, undo, toolbar.
//
// An editor adds what its vectors mean: editors.NAME(canvas) returns
//   tools: [{ name, label, key, icon }]   the first is in hand at the start; icon may be a word
//   hint: string                          one sentence under the canvas
//   build(bar)                            optional; adds its own controls to the toolbar
//   paint(context, value)                 draws a value (null: nothing yet), in picture pixels
//   overlay(context)                      optional; draws what is in progress, in picture pixels
//   down(point), move(point), up(point)   the pen, in picture pixels: { x, y, pressure, event }
//   cancel()                              the stroke became a pinch, or Escape was pressed
//   hover(point)                          optional; the pointer without the pen down
//   key(event)                            optional; returns whether it used the key
//   resized(value, size)                  optional; the value on a canvas of another size
//   changed(value)                        optional; there is another value, also by undo
//   loaded(name)                          optional; one of canvas.images has come or gone
//   ground: string                        optional; the colour under everything
//
// A value is the edit that the server takes (apps/README.md, "Edits"). It is never changed in
// place, so that undo is a list of values.
const editors = {};

const ICONS = {
  undo: "M9 7 5 11l4 4M5 11h9a5 5 0 0 1 0 10h-3",
  redo: "M15 7l4 4-4 4M19 11h-9a5 5 0 0 0 0 10h3",
  fit: "M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5",
  large: "M14 4h6v6M20 4l-7 7M10 20H4v-6M4 20l7-7",
  clear: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  pen: "M4 20l1-5L16 4l4 4L9 19z",
  eraser: "M8 20 3 15 14 4l6 6-10 10zM8 20h12",
  line: "M5 19 19 5",
  rectangle: "M4 6h16v12H4z",
  ellipse: "M3 12a9 6 0 1 0 18 0a9 6 0 1 0-18 0",
  move: "M12 3v18M3 12h18M12 3l-3 3M12 3l3 3M12 21l-3-3M12 21l3-3M3 12l3-3M3 12l3 3M21 12l-3-3M21 12l-3 3",
  fill: "M5 12 12 5l7 7-7 7zM12 5V3M20 15c1 2 2 3 0 4c-2-1-1-2 0-4",
  add: "M12 5v14M5 12h14",
  remove: "M5 12h14",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  picture: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4",
  mirror: "M12 3v18M9 8 4 16h5zM15 8l5 8h-5z",
  copy: "M8 8h12v12H8zM16 8V4H4v12h4",
};

const node = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
};

const icon = (name) => {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
};

// The toolbar's parts. Each returns its element; text is always set as text.
const bar = {
  button: (label, name, press, key = "") =>
    node("button", {
      type: "button",
      class: "cv-button",
      title: key ? `${label} (${key})` : label,
      "aria-label": label,
      onclick: press,
    }, ...(name in ICONS ? [icon(name)] : [name])),
  toggle: (label, name, change, on = false) => {
    const made = bar.button(label, name, () => {
      const next = made.getAttribute("aria-pressed") !== "true";
      made.setAttribute("aria-pressed", String(next));
      change(next);
    });
    made.setAttribute("aria-pressed", String(on));
    return made;
  },
  // `change` hears every step, `release` the end of a drag; show(value) moves it from outside.
  range: (label, low, high, step, value, change, release) => {
    const shown = node("output", {}, String(value));
    const input = node("input", {
      type: "range", min: low, max: high, step, value, "aria-label": label,
      oninput: () => {
        shown.textContent = input.value;
        change?.(Number(input.value));
      },
      onchange: () => release?.(Number(input.value)),
    });
    const made = node("label", { class: "cv-range" }, node("span", {}, label), input, shown);
    made.show = (next) => { input.value = shown.textContent = next; };
    return made;
  },
  select: (label, options, value, change) =>
    node("label", { class: "cv-select" }, node("span", {}, label), node("select", {
      "aria-label": label, onchange: (event) => change(event.target.value),
    }, ...options.map(([name, text]) =>
      node("option", { value: name, selected: name === value }, text)))),
  number: (label, low, high, value, change) =>
    node("label", { class: "cv-number" }, node("span", {}, label), node("input", {
      type: "number", min: low, max: high, step: 1, value, "aria-label": label,
      onchange: (event) => {
        const asked = Math.round(Number(event.target.value)) || value;
        event.target.value = Math.min(Math.max(asked, low), high);
        change(Number(event.target.value));
      },
    })),
  group: (label, ...parts) => node("div", { class: "cv-group", role: "group", "aria-label": label }, ...parts),
};

const saveAs = (name, content, type) => {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  node("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
};

// The vectors of a value that the server's map does not show yet: those after the first that differs.
const unshown = (vectors, shown = []) => {
  const same = vectors.findIndex((one, i) => JSON.stringify(one) !== JSON.stringify(shown[i]));
  return same < 0 ? [] : vectors.slice(same);
};

const BELOW = Object.keys({ photo: 0, drawn: 0, trace: 0 }); // the pictures of a scene, see watch below
const MAP_AFTER_PICTURE_MS = 400; // most live pictures have come by then

const rounded = (number) => Math.round(number * 10) / 10;

function openCanvas({ element, props, trigger, watch }, { kind, facts, heading, canFollow }) {
  const screen = node("canvas", {
    class: "cv-screen", tabindex: 0, role: "application",
    "aria-label": `${heading}. Arrow keys move the pen, Enter puts it down and lifts it.`,
  });
  if (!screen.getContext("2d")) {
    const told = "This browser gives pages no canvas to draw on: an add-on that guards privacy may "
      + "forbid it. Please allow it for this site, or use another browser.";
    const hint = node("p", { class: "cv-hint", role: "alert" }, told);
    element.querySelector("[data-canvas]").append(node("div", { class: "cv" }, hint));
    return;
  }
  const toolbar = node("div", { class: "cv-bar", role: "toolbar", "aria-label": `${heading}: tools` });
  const hint = node("p", { class: "cv-hint" });
  const root = node("div", { class: "cv" }, toolbar, node("div", { class: "cv-stage" }, screen), hint);
  element.querySelector("[data-canvas]").append(root);

  const view = { scale: 1, x: 0, y: 0 };
  const cache = document.createElement("canvas");
  const temporary = document.createElement("canvas");
  const past = [];
  const future = [];
  const given = () => (props.value?.size ? props.value : null); // Gradio's empty value is ""
  let value = given();
  let told = value; // what Python has heard last: the value, or one that is only looked at
  let isLookDue = false;
  let scene = props.scene ?? {};
  let isFitted = true;
  let isCached = false;
  let isAsked = false;
  let cursor = null; // the keyboard's pen: { x, y, isDown }
  let pressed = null; // the pointer that draws or pans: { id, pans, x, y }
  let pinch = null;
  const touches = new Map();
  const asked = {}; // the images that were asked for last: name to URL

  const canvas = {
    facts,
    tool: "",
    screen,
    get value() { return value; },
    get size() { return value?.size ?? scene.size ?? [512, 512]; },
    get scale() { return view.scale; },
    get scene() { return scene; },
    images: {}, // what lies under the drawing, by name: "photo" and "drawn" from the server
    shown: null, // the value that images.drawn shows
    opacity: { photo: 1, drawn: 1 },
    // Shows what a value would look like, while a slider is dragged; commit makes it one.
    preview(next) {
      told = next;
      if (isLookDue) return;
      isLookDue = true;
      requestAnimationFrame(() => {
        if (isLookDue) tell();
      });
    },
    commit(next) {
      past.push(value);
      future.length = 0;
      adopt(next);
      send();
    },
    redraw(isSame = false) {
      isCached = isCached && isSame;
      if (isAsked) return;
      isAsked = true;
      requestAnimationFrame(() => {
        isAsked = false;
        draw();
      });
    },
    say(text) { hint.textContent = text; },
    use(name) {
      editor.cancel();
      canvas.tool = name;
      for (const button of toolbar.querySelectorAll("[data-tool]")) {
        button.setAttribute("aria-pressed", String(button.dataset.tool === name));
      }
      canvas.redraw();
    },
    load(name, url) {
      asked[name] = url;
      if (!url) {
        delete canvas.images[name];
        if (name === "drawn") canvas.shown = null;
        editor.loaded?.(name);
        canvas.redraw();
        return;
      }
      const { shows = null } = scene;
      const image = new Image();
      image.onload = () => {
        if (asked[name] !== url) return; // another is coming
        canvas.images[name] = image;
        if (name === "drawn") canvas.shown = shows;
        editor.loaded?.(name);
        canvas.redraw();
      };
      image.src = url;
      canvas.images[name] ??= null; // it is coming; until then the one before stays
    },
    // The value's picture alone, at the canvas's own size.
    flat(ground) {
      const [width, height] = canvas.size;
      const paper = node("canvas", { width, height });
      const layer = node("canvas", { width, height });
      editor.paint(layer.getContext("2d"), value);
      const context = paper.getContext("2d");
      context.fillStyle = ground;
      context.fillRect(0, 0, width, height);
      context.drawImage(layer, 0, 0);
      return paper;
    },
  };
  const editor = editors[kind](canvas);

  const adopt = (next) => {
    const [width, height] = canvas.size;
    value = next;
    if (canvas.size[0] !== width || canvas.size[1] !== height) layOut();
    editor.changed?.(value);
    undo.disabled = !past.length;
    redo.disabled = !future.length;
    canvas.redraw();
  };

  // Python hears of a value when a stroke has ended, never while it is drawn, and of what is only
  // looked at once a frame; while it draws, Gradio keeps the newest back.
  let late = 0;
  const send = () => {
    told = props.value = value;
    clearTimeout(late);
    // A live picture comes first: to draw the map at the same time would hold it up.
    if (ask()) late = setTimeout(tell, MAP_AFTER_PICTURE_MS);
    else tell();
  };
  const tell = () => {
    isLookDue = false;
    props.value = told;
    trigger("edit");
  };

  const step = (from, to) => {
    if (!from.length) return;
    editor.cancel();
    to.push(value);
    adopt(from.pop());
    send();
  };

  // Live: ask for a picture when something has changed, but not while nobody can see it. Returns
  // whether one was asked for.
  let isLive = false;
  let isWaiting = false;
  const ask = () => {
    if (!isLive || !(value || scene.photo)) return false; // or there is nothing to follow yet
    if (!root.getClientRects().length) return false; // the editor was hidden, or made anew
    isWaiting = document.hidden;
    if (!isWaiting) trigger("live");
    return !isWaiting;
  };
  document.addEventListener("visibilitychange", () => isWaiting && ask());
  let pause = 0;
  for (const kind of ["input", "change"]) {
    document.addEventListener(kind, (event) => {
      if (!isLive || element.contains(event.target) || !event.target.closest?.(".cl-columns")) return;
      clearTimeout(pause);
      pause = setTimeout(ask, 250); // while a slider is dragged or a word is typed
    });
  }

  // View

  const layOut = () => {
    const isLarge = root.classList.contains("cv-large");
    const [width, height] = canvas.size;
    const box = screen.parentElement;
    const tallest = isLarge ? box.clientHeight : Math.min(window.innerHeight * 0.72, 680);
    const wide = box.clientWidth;
    if (!wide) return; // not on screen
    const tall = isLarge ? tallest : Math.min(tallest, Math.max(180, (wide * height) / width));
    const density = window.devicePixelRatio || 1;
    for (const one of [screen, cache, temporary]) {
      one.width = Math.round(wide * density);
      one.height = Math.round(tall * density);
    }
    screen.style.height = `${tall}px`;
    if (isFitted) fit();
    canvas.redraw();
  };

  const fit = () => {
    const [width, height] = canvas.size;
    const [wide, tall] = [screen.clientWidth, screen.clientHeight];
    view.scale = Math.min(wide / width, tall / height);
    view.x = (wide - width * view.scale) / 2;
    view.y = (tall - height * view.scale) / 2;
    isFitted = true;
    canvas.redraw();
  };

  const zoom = (factor, x, y) => {
    const scale = Math.min(Math.max(view.scale * factor, 0.05), 40);
    view.x = x - ((x - view.x) * scale) / view.scale;
    view.y = y - ((y - view.y) * scale) / view.scale;
    view.scale = scale;
    isFitted = false;
    canvas.redraw();
  };

  const inPicture = (context) => {
    const density = window.devicePixelRatio || 1;
    context.setTransform(density * view.scale, 0, 0, density * view.scale, density * view.x, density * view.y);
  };

  const cleared = (context) => {
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, context.canvas.width, context.canvas.height);
    return context;
  };

  const draw = () => {
    const [width, height] = canvas.size;
    const layer = cleared(temporary.getContext("2d"));
    if (!isCached) {
      const kept = cleared(cache.getContext("2d"));
      inPicture(kept);
      editor.paint(kept, value);
      isCached = true;
    }
    layer.drawImage(cache, 0, 0);
    inPicture(layer);
    editor.overlay?.(layer);

    const context = cleared(screen.getContext("2d"));
    inPicture(context);
    context.fillStyle = editor.ground ?? "#ffffff";
    context.fillRect(0, 0, width, height);
    context.imageSmoothingEnabled = view.scale < 3;
    for (const name of new Set(["photo", ...Object.keys(canvas.images)])) {
      const image = canvas.images[name];
      context.globalAlpha = canvas.opacity[name] ?? 1;
      if (!image) continue;
      // The server's pictures are as large as the paper; one to trace has a shape of its own.
      const share = name === "trace" ? Math.min(width / image.width, height / image.height) : 0;
      const [wide, high] = share ? [image.width * share, image.height * share] : [width, height];
      context.drawImage(image, (width - wide) / 2, (height - high) / 2, wide, high);
    }
    context.globalAlpha = 1;
    context.save();
    context.beginPath();
    context.rect(0, 0, width, height);
    context.clip();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.drawImage(temporary, 0, 0);
    context.restore();
    if (cursor && document.activeElement === screen) {
      const arm = 9 / view.scale;
      context.lineWidth = 1.5 / view.scale;
      context.strokeStyle = "#0f9488";
      context.beginPath();
      context.moveTo(cursor.x - arm, cursor.y);
      context.lineTo(cursor.x + arm, cursor.y);
      context.moveTo(cursor.x, cursor.y - arm);
      context.lineTo(cursor.x, cursor.y + arm);
      context.stroke();
    }
  };

  // Pointers

  const pointAt = (event) => {
    const box = screen.getBoundingClientRect();
    return {
      x: (event.clientX - box.left - view.x) / view.scale,
      y: (event.clientY - box.top - view.y) / view.scale,
      pressure: event.pointerType === "pen" ? Math.max(event.pressure, 0.05) : 1,
      event,
    };
  };

  const middle = () => {
    const [a, b] = [...touches.values()];
    const box = screen.getBoundingClientRect();
    return {
      x: (a.clientX + b.clientX) / 2 - box.left,
      y: (a.clientY + b.clientY) / 2 - box.top,
      apart: Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY),
    };
  };

  screen.addEventListener("pointerdown", (event) => {
    screen.focus({ preventScroll: true });
    event.preventDefault();
    cursor = null;
    screen.setPointerCapture?.(event.pointerId);
    if (event.pointerType === "touch") {
      touches.set(event.pointerId, event);
      if (touches.size === 2) {
        editor.cancel();
        pressed = null;
        pinch = middle();
      }
      if (touches.size > 1) return;
    }
    if (pressed) return;
    const pans = event.button === 2 || event.button === 1 || isSpaceDown;
    pressed = { id: event.pointerId, pans, x: event.clientX, y: event.clientY };
    if (!pans) editor.down(pointAt(event));
    canvas.redraw(true);
  });

  screen.addEventListener("pointermove", (event) => {
    if (touches.has(event.pointerId)) touches.set(event.pointerId, event);
    if (pinch && touches.size === 2) {
      const now = middle();
      view.x += now.x - pinch.x;
      view.y += now.y - pinch.y;
      zoom(now.apart / Math.max(pinch.apart, 1), now.x, now.y);
      pinch = now;
    } else if (pressed?.id !== event.pointerId) {
      editor.hover?.(pointAt(event));
    } else if (pressed.pans) {
      view.x += event.clientX - pressed.x;
      view.y += event.clientY - pressed.y;
      [pressed.x, pressed.y] = [event.clientX, event.clientY];
      isFitted = false;
      canvas.redraw();
    } else {
      // A fast pen moves more often than the screen is drawn.
      const all = event.getCoalescedEvents?.() ?? [];
      for (const one of all.length ? all : [event]) editor.move(pointAt(one));
      canvas.redraw(true);
    }
  });

  const release = (event) => {
    touches.delete(event.pointerId);
    if (touches.size < 2) pinch = null;
    if (pressed?.id !== event.pointerId) return;
    const { pans } = pressed;
    pressed = null;
    if (!pans && event.type === "pointerup") editor.up(pointAt(event));
    else if (!pans) editor.cancel();
    canvas.redraw(true);
  };
  screen.addEventListener("pointerup", release);
  screen.addEventListener("pointercancel", release);
  screen.addEventListener("contextmenu", (event) => event.preventDefault());
  screen.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !root.classList.contains("cv-large") && document.activeElement !== screen) return;
    event.preventDefault();
    const box = screen.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });

  // Keys

  let isSpaceDown = false;
  let isInside = false;
  root.addEventListener("pointerenter", () => { isInside = true; });
  root.addEventListener("pointerleave", () => { isInside = false; });
  document.addEventListener("keyup", (event) => {
    if (event.key === " ") isSpaceDown = false;
  });

  const penByKey = (event) => {
    const far = event.shiftKey ? 1 : 8;
    const [dx, dy] = {
      ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far],
    }[event.key] ?? [0, 0];
    if (!dx && !dy && event.key !== "Enter") return false;
    const [width, height] = canvas.size;
    cursor ??= { x: width / 2, y: height / 2, isDown: false };
    cursor.x = Math.min(Math.max(cursor.x + dx, 0), width);
    cursor.y = Math.min(Math.max(cursor.y + dy, 0), height);
    const point = { x: cursor.x, y: cursor.y, pressure: 1, event };
    if (event.key !== "Enter") {
      if (cursor.isDown) editor.move(point);
      else editor.hover?.(point);
    } else {
      cursor.isDown = !cursor.isDown;
      editor[cursor.isDown ? "down" : "up"](point);
    }
    canvas.redraw(true);
    return true;
  };

  const used = (event) => {
    const isFocused = document.activeElement === screen;
    const key = event.key.toLowerCase();
    if (event.ctrlKey || event.metaKey) {
      if (key === "z") step(...(event.shiftKey ? [future, past] : [past, future]));
      else if (key === "y") step(future, past);
      else return false;
      return true;
    }
    if (event.altKey) return false;
    if (isFocused && editor.key?.(event)) return true;
    if (key === "escape") {
      const isBusy = cursor?.isDown || root.classList.contains("cv-large");
      if (cursor?.isDown) {
        editor.cancel();
        cursor.isDown = false;
        canvas.redraw(true);
      } else if (isBusy) enlarge(false);
      return Boolean(isBusy);
    }
    if (isFocused && key === " ") {
      isSpaceDown = true;
      return true;
    }
    if (isFocused && penByKey(event)) return true;
    const tool = editor.tools.find((one) => one.key === key);
    if (tool) canvas.use(tool.name);
    return Boolean(tool);
  };

  document.addEventListener("keydown", (event) => {
    const isText = event.target.closest?.("input:not([type=range]), textarea, select, [contenteditable]");
    const isOurs = root.contains(document.activeElement) || isInside;
    const isLarge = root.classList.contains("cv-large");
    if (!(isOurs || isLarge) || isText || !root.isConnected || !used(event)) return;
    event.preventDefault();
    event.stopImmediatePropagation(); // Escape would stop a run
  }, true);

  // The toolbar

  const enlarge = (on) => {
    root.classList.toggle("cv-large", on);
    large.setAttribute("aria-pressed", String(on));
    document.body.classList.toggle("cl-canvas-large", on);
    isFitted = true;
    layOut();
  };

  const undo = bar.button("Undo", "undo", () => step(past, future), "Ctrl+Z");
  const redo = bar.button("Redo", "redo", () => step(future, past), "Ctrl+Y");
  undo.disabled = true;
  redo.disabled = true;
  const large = bar.toggle("Large view", "large", enlarge);
  if (editor.tools.length > 1) {
    toolbar.append(bar.group("Tools", ...editor.tools.map((tool) => {
      const button = bar.button(tool.label, tool.icon, () => canvas.use(tool.name), tool.key?.toUpperCase());
      button.dataset.tool = tool.name;
      return button;
    })));
  }
  editor.build?.(toolbar);
  toolbar.append(
    bar.group("History", undo, redo),
    bar.group("View", bar.button("Fit to view", "fit", fit), large),
  );
  if (canFollow) {
    const live = bar.toggle("Live: the picture follows the drawing", "Live", (on) => {
      isLive = on;
      ask();
    });
    live.classList.add("cv-live");
    live.id = "live";
    toolbar.append(bar.group("Live", live));
  }
  if (editor.hint) canvas.say(editor.hint);

  // Python's side: a value that was restored or taken from an example can be undone too.
  const follow = () => {
    const before = scene;
    const [width, height] = canvas.size;
    scene = { ...scene, ...props.scene }; // Python sends what has changed
    for (const name of BELOW) {
      if (scene[name] !== before[name]) canvas.load(name, scene[name]);
    }
    if (scene.drawn === before.drawn && canvas.images.drawn) canvas.shown = scene.shows ?? null;
    if (canvas.size[0] !== width || canvas.size[1] !== height) layOut();
    if (!isLookDue && JSON.stringify(given()) !== JSON.stringify(told)) {
      clearTimeout(late); // it was for the value before
      past.push(value);
      future.length = 0;
      told = given();
      adopt(told);
      ask();
    }
    canvas.redraw();
  };
  // Built, not quoted: Gradio takes every quoted name in this text for an event's.
  watch(Object.keys({ value: 0, scene: 0 }), follow);
  for (const name of BELOW) if (scene[name]) canvas.load(name, scene[name]);

  new ResizeObserver(layOut).observe(screen.parentElement);
  window.addEventListener("resize", layOut);
  canvas.use(editor.tools[0].name);
  layOut();
}
