// Segments: classes painted, filled and replaced in a class map, where each pixel is one class.
ICONS.replace = "M4 8h13M13 4l4 4-4 4M20 16H7M11 12l-4 4 4 4";
ICONS.pick = "M4 20l2-5 8-8 3 3-8 8zM13 6l3-3 5 5-3 3z";

// A text field with the list of classes that it finds; keyboard and reader know it as a combobox.
// First come the classes that the model knows, `model().classes`, then `own()`, the map's.
const classField = (names, swatch, own, model, choose) => {
  const list = node("ul", { class: "options cv-list", role: "listbox", id: "cv-classes", "aria-label": "Classes" });
  let current = 0;
  let active = -1;
  const isOpen = () => list.isConnected;
  const mark = (index) => {
    list.children[active]?.setAttribute("aria-selected", "false");
    active = Math.min(Math.max(index, 0), list.children.length - 1);
    const option = list.children[active];
    if (!option) return field.removeAttribute("aria-activedescendant");
    option.setAttribute("aria-selected", "true");
    option.scrollIntoView({ block: "nearest" });
    field.setAttribute("aria-activedescendant", option.id);
  };
  const take = (index) => {
    choose(index);
    close();
    canvasOf().focus({ preventScroll: true });
  };
  const marks = (index) => {
    const { title, classes } = model();
    if (!classes.length) return []; // a model that says nothing of its classes
    return [classes.includes(index) ? node("span", { class: "cv-known" }, `✓ ${title}`)
      : node("span", { class: "cv-unknown" }, `not in ${title}`)];
  };
  const fill = (words) => {
    const asked = words.trim().toLowerCase();
    const present = own();
    const { classes } = model();
    const rank = (index) => (present.includes(index) ? present.indexOf(index) - names.length : 0)
      + (asked && names[index].startsWith(asked) ? -2 * names.length : 0)
      + (classes.includes(index) ? -4 * names.length : 0);
    const found = names.map((_, index) => index)
      .filter((index) => names[index].includes(asked))
      .sort((a, b) => rank(a) - rank(b) || a - b);
    list.replaceChildren(...found.map((index) => node("li", {
      role: "option", id: `cv-class-${index}`, "aria-selected": "false",
      onpointerdown: (event) => event.preventDefault(), // the field keeps the focus
      onclick: () => take(index),
    }, swatch(index), names[index],
    ...marks(index))));
    if (!found.length) list.append(node("li", { class: "cv-none" }, "No class has such a name."));
    mark(found.length ? 0 : -1);
  };
  const open = (words) => {
    box.append(list);
    field.setAttribute("aria-expanded", "true");
    field.setAttribute("aria-controls", list.id);
    fill(words);
  };
  const close = () => {
    list.remove();
    field.setAttribute("aria-expanded", "false");
    field.removeAttribute("aria-controls");
    field.removeAttribute("aria-activedescendant");
    field.value = names[current];
  };
  const field = node("input", {
    type: "text", class: "cv-field", role: "combobox", "aria-label": "Class: type to search",
    "aria-expanded": "false", "aria-autocomplete": "list", autocomplete: "off", spellcheck: "false",
    onfocus: () => { field.select(); open(""); },
    onclick: () => isOpen() || open(""),
    oninput: () => open(field.value),
    onblur: close,
    onkeydown: (event) => {
      if (event.ctrlKey || event.metaKey) return; // Ctrl+Enter runs
      const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8 }[event.key];
      if (step && isOpen()) mark(active + step);
      else if (step) open("");
      else if (event.key === "Escape" && isOpen()) close();
      else if (event.key === "Enter" && isOpen()) list.children[active]?.click();
      else return;
      event.preventDefault();
      event.stopPropagation();
    },
  });
  const shown = node("span", { class: "cv-swatch" });
  const box = node("div", { class: "cv-class" }, shown, field);
  const canvasOf = () => box.closest(".cv").querySelector(".cv-screen");
  return {
    element: box,
    show(index) {
      current = index;
      field.value = names[index];
      shown.style.background = swatch(index).style.background;
    },
  };
};

editors.segments = (canvas) => {
  const names = canvas.facts.names.split(",");
  const colours = canvas.facts.colours.split(",").map((colour) => `#${colour}`);
  const classOf = new Map(colours.map((colour, index) => [parseInt(colour.slice(1), 16), index]));
  const GROUND = names.indexOf("sky"); // of a canvas without a picture
  const HINT = "Choose a class and paint. Point at a place to see what it is; "
    + "two fingers or the right button move the map.";
  let current = names.indexOf("grass");
  let width = canvas.facts.width;
  let photoShare = 0.3;
  let board = null; // the map's pixels, as they are seen
  let at = null; // where the pointer is
  let isDown = false;
  let chipped = "";
  const pen = strokePen(canvas);
  const hasMap = () => "drawn" in canvas.images;

  // A region that was filled or replaced is seen when the server's map comes.
  const paintAll = (context, value) => {
    for (const op of unshown(value?.ops ?? [], canvas.shown?.ops)) {
      if (op.op === "empty") {
        context.fillStyle = colours[op.class];
        context.fillRect(0, 0, ...canvas.size);
      } else if (op.op === "paint") paintStroke(context, op, colours[op.class]);
    }
  };

  const pixels = () => {
    if (board) return board;
    const [wide, high] = canvas.size;
    const context = node("canvas", { width: wide, height: high })
      .getContext("2d", { willReadFrequently: true });
    context.fillStyle = colours[GROUND];
    context.fillRect(0, 0, wide, high);
    context.imageSmoothingEnabled = false;
    if (canvas.images.drawn) context.drawImage(canvas.images.drawn, 0, 0, wide, high);
    paintAll(context, canvas.value);
    board = context.getImageData(0, 0, wide, high);
    return board;
  };
  const classIn = (data, start) =>
    classOf.get((data[start] << 16) | (data[start + 1] << 8) | data[start + 2]);
  const classAt = (point) => {
    const { data, width: wide, height: high } = pixels();
    const [x, y] = [Math.floor(point.x), Math.floor(point.y)];
    if (x < 0 || y < 0 || x >= wide || y >= high) return undefined;
    return classIn(data, 4 * (y * wide + x));
  };
  // The classes of the map, those of the largest area first.
  const present = () => {
    const { data } = pixels();
    const areas = new Map();
    for (let start = 0; start < data.length; start += 4) {
      const found = classIn(data, start);
      if (found !== undefined) areas.set(found, (areas.get(found) ?? 0) + 1);
    }
    return [...areas.keys()].sort((a, b) => areas.get(b) - areas.get(a));
  };

  // The page's model and the classes that it knows: none where it was trained with other data.
  const model = () => canvas.scene.model ?? { title: "", classes: [] };
  const swatch = (index) => {
    const made = node("span", { class: "cv-swatch" });
    made.style.background = colours[index];
    return made;
  };
  const choose = (index) => {
    current = index;
    field.show(index);
    showChips();
    canvas.redraw(true);
  };
  const field = classField(names, swatch, present, model, (index) => {
    choose(index);
    if (canvas.tool === "pick") canvas.use("paint");
  });
  const chips = bar.group("Classes of this map");
  chips.classList.add("cv-chips");
  const showChips = () => {
    const found = present();
    const all = found.includes(current) ? found : [...found, current];
    if (chipped !== all.join()) {
      chipped = all.join();
      chips.replaceChildren(...all.map((index) => node("button", {
        type: "button", class: "cv-button", "data-index": index, onclick: () => choose(index),
      }, swatch(index), names[index])));
    }
    for (const chip of chips.children) {
      chip.setAttribute("aria-pressed", String(Number(chip.dataset.index) === current));
    }
  };
  const refresh = () => {
    board = null;
    canvas.opacity.drawn = canvas.images.photo ? 1 - photoShare : 1;
    showChips();
  };

  const add = (op) => {
    const start = hasMap() ? [] : [{ op: "empty", class: GROUND }];
    const now = canvas.value ?? { size: canvas.size, ops: start };
    canvas.commit({ ...now, ops: [...now.ops, op] });
  };
  const says = (found) => {
    if (found === undefined) return HINT;
    const [here, chosen] = [names[found], names[current]];
    const { title, classes } = model();
    const known = !classes.length ? ""
      : classes.includes(found) ? ` (✓ ${title} knows it)` : ` (${title} does not know it)`;
    if (canvas.tool === "pick") return `Take ${here} to paint with.`;
    if (found === current || canvas.tool === "paint") return `Here: ${here}${known}.`;
    return canvas.tool === "fill" ? `Make this ${here} ${chosen}.`
      : `Make all ${here} of the map ${chosen}.`;
  };
  const act = (point) => {
    const found = classAt(point);
    const [x, y] = [Math.floor(point.x) + 0.5, Math.floor(point.y) + 0.5];
    const isInside = x > 0 && y > 0 && x < canvas.size[0] && y < canvas.size[1];
    if (canvas.tool === "pick") {
      if (found === undefined) return;
      choose(found);
      canvas.use("paint");
      canvas.say(`In hand: ${names[found]}.`);
    } else if (canvas.tool === "fill") {
      if (isInside && found !== current) add({ op: "fill", class: current, at: [x, y] });
    } else if (found !== undefined && found !== current) {
      add({ op: "replace", from: found, to: current });
    }
  };

  return {
    tools: [
      { name: "paint", label: "Paint", key: "b", icon: "pen" },
      { name: "fill", label: "Fill a region", key: "f", icon: "fill" },
      { name: "replace", label: "Replace a class everywhere", key: "r", icon: "replace" },
      { name: "pick", label: "Pick a class from the map", key: "i", icon: "pick" },
    ],
    hint: HINT,
    get ground() { return hasMap() ? "#ffffff" : colours[GROUND]; },
    build(toolbar) {
      toolbar.append(
        bar.group("Class", field.element),
        bar.group("Brush", bar.range("Size", 1, 200, 1, width, (next) => { width = next; })),
        bar.group("Map",
          bar.range("Picture", 0, 100, 5, 100 * photoShare, (next) => {
            photoShare = next / 100;
            canvas.opacity.drawn = canvas.images.photo ? 1 - photoShare : 1;
            canvas.redraw(true);
          }),
          bar.button("Start empty: this class everywhere", "Start empty", () =>
            canvas.commit({ size: canvas.size, ops: [{ op: "empty", class: current }] }))),
        chips,
      );
      choose(current);
      canvas.screen.addEventListener("pointerleave", (event) => {
        if (event.pointerType === "touch") return; // a finger leaves whenever it is lifted
        at = null;
        canvas.say(HINT);
        canvas.redraw(true);
      });
    },
    changed: refresh,
    loaded: refresh,
    paint: paintAll,
    overlay(context) {
      if (pen.points.length) paintStroke(context, { points: pen.points, width }, colours[current]);
      if (!at || canvas.tool !== "paint") return;
      for (const [colour, more] of [["#ffffff", 1.5], ["#000000", 0]]) {
        context.beginPath();
        context.arc(at.x, at.y, width / 2 + more / canvas.scale, 0, 2 * Math.PI);
        context.lineWidth = 1.5 / canvas.scale;
        context.strokeStyle = colour;
        context.stroke();
      }
    },
    hover(point) {
      at = point.event.pointerType === "touch" ? null : point;
      canvas.say(says(classAt(point)));
      canvas.redraw(true);
    },
    down(point) {
      isDown = true;
      if (canvas.tool === "paint") pen.down(point);
    },
    move(point) {
      at = at && point;
      pen.move(point);
    },
    up(point) {
      if (!isDown) return;
      isDown = false;
      if (canvas.tool !== "paint") return act(point);
      pen.move(point);
      const points = pen.up();
      if (points.length) add({ op: "paint", class: current, points, width });
    },
    cancel() {
      isDown = false;
      pen.up();
    },
  };
};
