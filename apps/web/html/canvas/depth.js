// Depth: bring places nearer or farther, and set the levels and the tilt of the whole map.
editors.depth = (canvas) => {
  const most = canvas.facts.levels;
  let strength = most / 2;
  return surfaceEditor(canvas, {
    tools: [
      { name: "nearer", label: "Nearer", key: "n", icon: "Nearer" },
      { name: "farther", label: "Farther", key: "f", icon: "Farther" },
    ],
    hint: "Paint what should be nearer (brighter) or farther (darker); the sliders change the whole map.",
    ground: "#000000",
    build: () => [bar.range("Strength", 1, most, 1, strength, (next) => { strength = next; })],
    strokeOf: () => ({ by: canvas.tool === "farther" ? -strength : strength }),
    colourOf: ({ by }) => (by < 0 ? `rgb(0 0 0 / ${-by / 255})` : `rgb(255 255 255 / ${by / 255})`),
  });
};
