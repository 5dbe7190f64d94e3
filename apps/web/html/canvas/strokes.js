// Strokes: black on paper, erased, mirrored, and traced over a picture.
const outline = {
  line: (a, b) => [[a.x, a.y], [b.x, b.y]],
  rectangle: (a, b) => [[a.x, a.y], [b.x, a.y], [b.x, b.y], [a.x, b.y], [a.x, a.y]],
  ellipse: (a, b) => {
    const [x, y] = [(a.x + b.x) / 2, (a.y + b.y) / 2];
    return Array.from({ length: 49 }, (_, i) => {
      const angle = (i * Math.PI) / 24;
      return [x + ((b.x - a.x) / 2) * Math.cos(angle), y + ((b.y - a.y) / 2) * Math.sin(angle)];
    });
  },
};

// Shift: a line in steps of 45 degrees, a square, a circle.
const held = (tool, a, b) => {
  if (!b.event.shiftKey) return b;
  const [dx, dy] = [b.x - a.x, b.y - a.y];
  if (tool === "line") {
    const length = Math.hypot(dx, dy);
    const angle = (Math.round((Math.atan2(dy, dx) * 4) / Math.PI) * Math.PI) / 4;
    return { ...b, x: a.x + length * Math.cos(angle), y: a.y + length * Math.sin(angle) };
  }
  const side = Math.max(Math.abs(dx), Math.abs(dy));
  return { ...b, x: a.x + side * Math.sign(dx || 1), y: a.y + side * Math.sign(dy || 1) };
};

// A stroke's pieces of one thickness each, as the server draws them: width times pressure.
const pieces = ({ points, width }) => {
  if (points.length === 1) return [{ points, thick: width * (points[0][2] ?? 1) }];
  if (!points.some((point) => point.length > 2)) return [{ points, thick: width }];
  return points.slice(1).map((point, i) => ({
    points: [points[i], point], thick: (width * ((points[i][2] ?? 1) + (point[2] ?? 1))) / 2,
  }));
};

// Draws one stroke, with round ends.
const paintStroke = (context, stroke, colour) => {
  context.strokeStyle = context.fillStyle = colour;
  context.lineCap = context.lineJoin = "round";
  for (const { points, thick } of pieces(stroke)) {
    context.beginPath();
    if (points.length === 1) {
      context.arc(points[0][0], points[0][1], thick / 2, 0, 2 * Math.PI);
      context.fill();
    } else {
      context.lineWidth = thick;
      points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
      context.stroke();
    }
  }
};

const mirrored = (points, width) => points.map(([x, ...rest]) => [rounded(width - x), ...rest]);

// The pen that editors of strokes share: gathers points, and gives a stroke when it is lifted.
const strokePen = (canvas, isShape = () => false) => {
  let start = null;
  let points = [];
  const whole = (point) => {
    const [width, height] = canvas.size;
    const x = rounded(Math.min(Math.max(point.x, -width), 2 * width));
    const y = rounded(Math.min(Math.max(point.y, -height), 2 * height));
    return point.pressure < 1 ? [x, y, Math.round(point.pressure * 100) / 100] : [x, y];
  };
  return {
    get points() { return points; },
    down(point) {
      start = point;
      points = [whole(point)];
    },
    move(point) {
      if (!start) return;
      if (isShape()) {
        points = outline[canvas.tool](start, held(canvas.tool, start, point))
          .map(([x, y]) => whole({ x, y, pressure: 1 }));
      } else if (point.event.shiftKey) {
        points = [points[0], whole(held("line", start, point))];
      } else {
        const [x, y] = points[points.length - 1];
        if (Math.hypot(point.x - x, point.y - y) * canvas.scale >= 1.5) points.push(whole(point));
      }
    },
    up() {
      const made = points;
      start = null;
      points = [];
      return made;
    },
  };
};

editors.strokes = (canvas) => {
  const BLANK = { strokes: [] };
  let width = canvas.facts.width ?? 8;
  // Over a map of light lines, or in black on paper of its own.
  const [ink, ground] = canvas.facts.over ? ["#ffffff", "#000000"] : ["#111111", "#ffffff"];
  let isMirroring = false;
  const isShape = () => canvas.tool in outline;
  const pen = strokePen(canvas, isShape);
  const isErasing = () => canvas.tool === "eraser";
  const strokeOf = (points) => ({
    points, width: isErasing() ? Math.max(width * 3, 10) : width, ...(isErasing() ? { erase: true } : {}),
  });
  const paintAll = (context, strokes) => {
    for (const stroke of strokes) {
      const isHole = stroke.erase && !canvas.facts.over;
      context.globalCompositeOperation = isHole ? "destination-out" : "source-over";
      // Over a picture a light rim keeps a black stroke in sight on a dark place.
      if (canvas.images.trace && !stroke.erase) {
        paintStroke(context, { ...stroke, width: stroke.width + 3 / canvas.scale }, "#ffffff");
      }
      paintStroke(context, stroke, stroke.erase ? ground : ink);
    }
    context.globalCompositeOperation = "source-over";
  };
  const both = (stroke) => (isMirroring
    ? [stroke, { ...stroke, points: mirrored(stroke.points, canvas.size[0]) }] : [stroke]);

  const svg = () => {
    const [wide, high] = canvas.size;
    const parts = (canvas.value?.strokes ?? []).flatMap((stroke) => pieces(stroke).map(({ points, thick }) => {
      const path = points.map(([x, y], i) => `${i ? "L" : "M"}${x} ${y}`).join("");
      const colour = stroke.erase ? "#fff" : "#000";
      return `<path d="${path}${points.length === 1 ? "h0" : ""}" stroke="${colour}" stroke-width="${rounded(thick)}"/>`;
    }));
    return `<svg xmlns="http://www.w3.org/2000/svg" width="${wide}" height="${high}" ` +
      `viewBox="0 0 ${wide} ${high}"><rect width="100%" height="100%" fill="#fff"/>` +
      '<g fill="none" stroke-linecap="round" stroke-linejoin="round">' + `${parts.join("")}</g></svg>`;
  };

  const trace = node("input", {
    type: "file", accept: "image/*", hidden: true,
    onchange: ({ target }) => {
      const [file] = target.files;
      if (file) canvas.load("trace", URL.createObjectURL(file));
      target.value = "";
    },
  });
  canvas.opacity.trace = 0.55;

  return {
    tools: [
      { name: "pen", label: "Pen", key: "b", icon: "pen" },
      { name: "eraser", label: "Eraser", key: "e", icon: "eraser" },
      { name: "line", label: "Line", key: "l", icon: "line" },
      { name: "rectangle", label: "Rectangle", key: "r", icon: "rectangle" },
      { name: "ellipse", label: "Ellipse", key: "o", icon: "ellipse" },
    ],
    ground,
    hint: canvas.facts.over
      ? "Rub out a stray edge or draw a missing one. Two fingers or the right button move the map."
      : "Draw with mouse, pen or finger. Shift draws straight; two fingers or the right button move the paper.",
    build(toolbar) {
      const sides = ["Width", "Height"].map((label, i) =>
        bar.number(label, 64, 2048, canvas.size[i], (side) => {
          const size = [...canvas.size];
          size[i] = side;
          canvas.commit({ ...this.resized(canvas.value ?? BLANK, size), size });
        }));
      this.sides = sides.map((label) => label.querySelector("input"));
      toolbar.append(
        bar.group("Stroke",
          bar.range("Size", 1, 60, 1, width, (next) => { width = next; }),
          bar.toggle("Mirror every stroke", "mirror", (on) => { isMirroring = on; canvas.redraw(true); })),
        canvas.facts.over ? "" : bar.group("Paper",
          bar.button("Clear the drawing", "clear", () => {
            if (canvas.value?.strokes.length) canvas.commit({ ...BLANK, size: canvas.size });
          }),
          bar.button("Trace a picture, or take it away", "picture", () => {
            if (canvas.images.trace) canvas.load("trace", "");
            else trace.click();
          }), trace),
        canvas.facts.over ? "" : node("details", { class: "cv-more" }, node("summary", {}, "Size and files"),
          node("div", { class: "cv-menu" }, ...sides,
            bar.button("Save as PNG", "Save PNG", () =>
              canvas.flat("#ffffff").toBlob((blob) => saveAs("drawing.png", blob))),
            bar.button("Save as SVG", "Save SVG", () => saveAs("drawing.svg", svg(), "image/svg+xml")))),
      );
    },
    changed() {
      this.sides.forEach((input, i) => { input.value = canvas.size[i]; });
    },
    // All of the drawing stays in sight: scaled to fit, in the middle.
    resized(value, [wide, high]) {
      const [oldWide, oldHigh] = canvas.size;
      const scale = Math.min(wide / oldWide, high / oldHigh);
      const [left, top] = [(wide - oldWide * scale) / 2, (high - oldHigh * scale) / 2];
      return {
        ...value,
        strokes: value.strokes.map((stroke) => ({
          ...stroke,
          width: Math.max(rounded(stroke.width * scale), 0.5),
          points: stroke.points.map(([x, y, ...rest]) => [
            rounded(x * scale + left), rounded(y * scale + top), ...rest]),
        })),
      };
    },
    // What the server has drawn into the map is not painted over it again.
    paint: (context, value) => paintAll(context, unshown(value?.strokes ?? [], canvas.shown?.strokes)),
    overlay(context) {
      if (pen.points.length) paintAll(context, both(strokeOf(pen.points)));
      if (isMirroring) {
        const [wide, high] = canvas.size;
        context.setLineDash([6 / canvas.scale, 6 / canvas.scale]);
        context.lineWidth = 1 / canvas.scale;
        context.strokeStyle = "#0f9488";
        context.beginPath();
        context.moveTo(wide / 2, 0);
        context.lineTo(wide / 2, high);
        context.stroke();
        context.setLineDash([]);
      }
    },
    down: (point) => pen.down(point),
    move: (point) => pen.move(point),
    up(point) {
      pen.move(point);
      const points = pen.up();
      if (!points.length) return;
      const now = canvas.value ?? { ...BLANK, size: canvas.size };
      canvas.commit({ ...now, strokes: [...now.strokes, ...both(strokeOf(points))] });
    },
    cancel: () => pen.up(),
  };
};
