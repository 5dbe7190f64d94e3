// Straight lines: drag an end or a whole line, draw a new one, delete one; ends snap to ends.
editors.lines = (canvas) => {
  const BLANK = { lines: [] };
  const ACCENT = "#2dd4bf";
  let chosen = -1; // which line is selected
  let under = -1; // which line the pointer is over
  let drag = null; // { line, from, ends, lines }: what is dragged, since where, which ends, the result
  let remove = null; // the toolbar's button
  canvas.opacity.photo = 0.35;
  canvas.opacity.drawn = 0; // the lines themselves stand for it, sharp at any size

  const lines = () => canvas.value?.lines ?? BLANK.lines;
  const now = () => canvas.value ?? { ...BLANK, size: canvas.size };
  const endsOf = ([x0, y0, x1, y1]) => [{ x: x0, y: y0 }, { x: x1, y: y1 }];
  const apart = (a, b) => Math.hypot(a.x - b.x, a.y - b.y);
  // In screen pixels, so that it feels the same at any zoom; a finger is wider than a mouse.
  const SNAP = 8;
  const reach = (point) => (point.event.pointerType === "touch" ? 20 : 9) / canvas.scale;

  const toLine = (point, line) => {
    const [a, b] = endsOf(line);
    const length = apart(a, b) ** 2;
    const along = length ? ((point.x - a.x) * (b.x - a.x) + (point.y - a.y) * (b.y - a.y)) / length : 0;
    const at = Math.min(Math.max(along, 0), 1);
    return apart(point, { x: a.x + at * (b.x - a.x), y: a.y + at * (b.y - a.y) });
  };

  // What lies under the pointer: an end before a line, the selected line's end before others.
  const hit = (point) => {
    const near = [];
    lines().forEach((line, i) => {
      endsOf(line).forEach((end, k) => near.push({ line: i, ends: [k], far: apart(point, end) - (i === chosen) * 1e-3 }));
      near.push({ line: i, ends: [0, 1], far: toLine(point, line) });
    });
    const within = near.filter(({ far }) => far <= reach(point)).sort((a, b) => a.far - b.far);
    return within.find(({ ends }) => ends.length === 1) ?? within[0];
  };

  const inside = (point) => {
    const [width, height] = canvas.size;
    return { ...point, x: Math.min(Math.max(point.x, 0), width), y: Math.min(Math.max(point.y, 0), height) };
  };

  // The nearest end of another line within SNAP, else the point itself.
  const snapped = (point, line) => {
    const ends = lines().flatMap((other, i) => (i === line ? [] : endsOf(other)));
    const near = ends.filter((end) => apart(end, point) * canvas.scale <= SNAP);
    near.sort((a, b) => apart(a, point) - apart(b, point));
    return near.length ? { ...point, ...near[0] } : point;
  };

  // An end at a place, the other fixed: snapped to an end, or with Shift in steps of 45 degrees.
  const placed = (fixed, point, line) => {
    const free = inside(point);
    const end = snapped(free, line);
    return end === free ? held("line", fixed, free) : end;
  };

  const moved = (line, point) => {
    const [dx, dy] = [point.x - drag.from.x, point.y - drag.from.y];
    const both = endsOf(line).map((end) => ({ ...point, x: end.x + dx, y: end.y + dy }));
    const snaps = both.map((end) => snapped(end, drag.line));
    const k = snaps.findIndex((end, i) => end.x !== both[i].x || end.y !== both[i].y);
    const [sx, sy] = k < 0 ? [0, 0] : [snaps[k].x - both[k].x, snaps[k].y - both[k].y];
    return both.flatMap(({ x, y }) => [x + sx, y + sy]);
  };

  const choose = (index) => {
    chosen = index;
    if (remove) remove.disabled = chosen < 0;
    canvas.redraw();
  };

  const erase = () => {
    if (chosen < 0) return;
    const left = lines().filter((_, i) => i !== chosen);
    choose(-1);
    canvas.commit({ ...now(), lines: left });
  };

  const stroke = (context, line, colour, width) => {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.lineCap = "round";
    context.beginPath();
    context.moveTo(line[0], line[1]);
    context.lineTo(line[2], line[3]);
    context.stroke();
  };

  return {
    tools: [
      { name: "change", label: "Move lines and ends", key: "v", icon: "move" },
      { name: "draw", label: "Draw a line", key: "l", icon: "line" },
    ],
    ground: "#000000",
    hint: "Drag a line or an end; click a line and press Delete. Shift keeps to 45 degrees; ends snap to ends.",
    build(toolbar) {
      remove = bar.button("Delete the line", "clear", erase, "Delete");
      remove.disabled = true;
      toolbar.append(
        bar.group("Lines", remove, bar.toggle("Show the picture", "picture", (on) => {
          canvas.opacity.photo = on ? 0.35 : 0;
          canvas.redraw();
        }, true)),
      );
    },
    changed() {
      under = -1;
      if (chosen >= lines().length) choose(-1);
    },
    paint(context, value) {
      const shown = drag?.lines ?? value?.lines ?? [];
      // As wide as in the map, but never too thin to be seen.
      for (const line of shown) stroke(context, line, "#ffffff", Math.max(1, 1.4 / canvas.scale));
    },
    overlay(context) {
      const shown = drag?.lines ?? lines();
      for (const i of new Set([under, chosen])) {
        if (!shown[i]) continue;
        stroke(context, shown[i], ACCENT, (i === chosen ? 3 : 2) / canvas.scale);
        for (const { x, y } of endsOf(shown[i])) {
          context.fillStyle = "#000000";
          context.strokeStyle = ACCENT;
          context.lineWidth = 2 / canvas.scale;
          context.beginPath();
          context.arc(x, y, 5 / canvas.scale, 0, 2 * Math.PI);
          context.fill();
          context.stroke();
        }
      }
    },
    hover(point) {
      const index = canvas.tool === "draw" ? -1 : hit(point)?.line ?? -1;
      canvas.screen.style.cursor = index < 0 ? "" : "move";
      if (index === under) return;
      under = index;
      canvas.redraw(true);
    },
    down(point) {
      const found = canvas.tool === "draw" ? null : hit(point);
      choose(found?.line ?? -1);
      if (found) drag = { ...found, from: point, lines: lines() };
      if (canvas.tool !== "draw") return;
      const { x, y } = snapped(inside(point), -1);
      drag = { line: lines().length, ends: [1], from: point, lines: [...lines(), [x, y, x, y]] };
      choose(drag.line);
    },
    move(point) {
      if (!drag) return;
      const line = lines()[drag.line] ?? drag.lines[drag.line];
      let next = line;
      if (drag.ends.length === 2) next = moved(line, point);
      else {
        const both = endsOf(line);
        const [k] = drag.ends;
        both[k] = placed(both[1 - k], point, drag.line);
        next = both.flatMap(({ x, y }) => [x, y]);
      }
      // A click with a hand that is not quite still moves nothing.
      if (drag.hasMoved || apart(point, drag.from) * canvas.scale > 3) {
        drag.hasMoved = true;
        drag.lines = drag.lines.map((one, i) => (i === drag.line ? next.map(rounded) : one));
        canvas.redraw();
      }
    },
    up(point) {
      this.move(point);
      const done = drag;
      drag = null;
      if (done?.hasMoved) canvas.commit({ ...now(), lines: done.lines });
      else if (done && done.line >= lines().length) choose(-1); // a new line of no length
      canvas.redraw();
    },
    cancel() {
      if (drag) choose(-1);
      drag = null;
    },
    key(event) {
      if (!["Delete", "Backspace"].includes(event.key) || chosen < 0) return false;
      erase();
      return true;
    },
  };
};
