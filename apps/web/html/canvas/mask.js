// A mask over the picture: what is painted may change, the rest stays.
editors.mask = (canvas) => {
  const TINT = "rgba(236, 0, 140, .5)";
  const isArea = () => ["area", "rectangle", "ellipse"].includes(canvas.tool);
  const isErasing = () => canvas.tool === "eraser";
  const pen = strokePen(canvas, () => canvas.tool in outline);
  let width = Math.max(8, Math.round(Math.max(...canvas.size) / 12));

  const strokeOf = (points) => ({
    points, width: isArea() ? 1 : width,
    ...(isArea() ? { fill: true } : {}), ...(isErasing() ? { erase: true } : {}),
  });
  const paintAll = (context, strokes) => {
    for (const stroke of strokes) {
      context.globalCompositeOperation = stroke.erase ? "destination-out" : "source-over";
      paintStroke(context, stroke, "#000000");
      if (stroke.fill) {
        context.beginPath();
        stroke.points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
        context.fill();
      }
    }
  };
  // One tint, however many strokes lie over each other.
  const tint = (context) => {
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.globalCompositeOperation = "source-in";
    context.fillStyle = TINT;
    context.fillRect(0, 0, context.canvas.width, context.canvas.height);
    context.globalCompositeOperation = "source-over";
  };
  const strokes = () => canvas.value?.strokes ?? [];

  return {
    tools: [
      { name: "pen", label: "Brush", key: "b", icon: "pen" },
      { name: "eraser", label: "Eraser", key: "e", icon: "eraser" },
      { name: "area", label: "Area: draw around it", key: "a", icon: "fill" },
      { name: "rectangle", label: "Rectangle", key: "r", icon: "rectangle" },
      { name: "ellipse", label: "Ellipse", key: "o", icon: "ellipse" },
    ],
    hint: "Paint over what may change. Everything else stays as it is, to the pixel.",
    build(toolbar) {
      toolbar.append(
        bar.group("Stroke", bar.range("Size", 4, 200, 1, width, (next) => { width = next; })),
        bar.group("Mask", bar.button("Clear the mask", "clear", () => {
          if (strokes().length) canvas.commit(null);
        })),
      );
    },
    paint(context, value) {
      paintAll(context, value?.strokes ?? []);
      tint(context);
    },
    overlay(context) {
      if (!pen.points.length) return;
      // Over the tinted strokes, as the pen is drawn on the same layer.
      const stroke = strokeOf(pen.points);
      if (stroke.erase) paintAll(context, [stroke]);
      else {
        context.globalAlpha = 0.5;
        paintStroke(context, { ...stroke, width: stroke.fill ? 3 / canvas.scale : width }, "#ec008c");
        context.globalAlpha = 1;
      }
      context.globalCompositeOperation = "source-over";
    },
    down: (point) => pen.down(point),
    move: (point) => pen.move(point),
    up(point) {
      pen.move(point);
      const points = pen.up();
      if (points.length) {
        canvas.commit({ size: canvas.size, strokes: [...strokes(), strokeOf(points)] });
      }
    },
    cancel: () => pen.up(),
  };
};
