// What the editors of depth and of normals share: sliders over a map, and soft strokes on it.
//
// `strokeOf()` returns what a new stroke has besides points and width, `colourOf(stroke)` its
// colour here. Only Python draws: what stands here until its map has come is an impression.
const surfaceEditor = (canvas, { tools, hint, ground, strokeOf, colourOf, build }) => {
  let width = canvas.facts.width;
  const pen = strokePen(canvas);
  const now = () => canvas.value ?? { size: canvas.size, strokes: [] };

  const paintAll = (context, strokes) => {
    const { a, d } = context.getTransform();
    for (const stroke of strokes) {
      // As soft as the server's; the filter counts pixels of the screen.
      context.filter = `blur(${(stroke.width / 5) * Math.sqrt(a * d)}px)`;
      paintStroke(context, stroke, colourOf(stroke));
    }
    context.filter = "none";
  };

  const movedTo = (slider, asked) => {
    const next = { ...now(), [slider.name]: asked };
    if (asked === slider.neutral) delete next[slider.name];
    const isPlain = Object.keys(next).length === 2 && !next.strokes.length; // size and strokes
    return isPlain ? null : next;
  };
  const sliders = canvas.facts.sliders.map((slider) => {
    const made = bar.range(slider.label, slider.low, slider.high, slider.step, slider.neutral,
      (asked) => canvas.preview(movedTo(slider, asked)),
      (asked) => canvas.commit(movedTo(slider, asked)));
    made.title = slider.help;
    return made;
  });

  return {
    tools,
    hint,
    ground,
    build(toolbar) {
      toolbar.append(
        bar.group("Brush", bar.range("Size", 2, 200, 1, width, (next) => { width = next; }), ...build()),
        bar.group("Whole map", ...sliders),
      );
    },
    changed(value) {
      canvas.facts.sliders.forEach(({ name, neutral }, i) => sliders[i].show(value?.[name] ?? neutral));
    },
    // What the server has drawn into the map is not painted over it again.
    paint: (context, value) =>
      paintAll(context, unshown(value?.strokes ?? [], canvas.shown?.strokes)),
    overlay(context) {
      if (pen.points.length) paintAll(context, [{ points: pen.points, width, ...strokeOf() }]);
    },
    down: (point) => pen.down(point),
    move: (point) => pen.move(point),
    up(point) {
      pen.move(point);
      const points = pen.up();
      if (!points.length) return;
      canvas.commit({ ...now(), strokes: [...now().strokes, { points, width, ...strokeOf() }] });
    },
    cancel: () => pen.up(),
  };
};
