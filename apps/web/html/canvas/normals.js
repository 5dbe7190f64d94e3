// Normals: paint a direction that is picked on a ball, and set the strength of the relief.
editors.normals = (canvas) => {
  let direction = [0, 0, 1]; // to the left, up, towards the camera, as in the map
  const rgb = ([x, y, z]) => `rgb(${[x, y, z].map((part) => Math.round(part * 127.5 + 127.5)).join(" ")})`;

  // A ball in the colours of its own normals; a click takes the direction there.
  const SIDE = 72;
  const RADIUS = SIDE / 2 - 2;
  const ball = node("canvas", {
    class: "cv-ball", width: SIDE * 2, height: SIDE * 2, tabindex: 0, role: "slider",
    "aria-label": "Direction to paint; arrow keys turn it", "aria-valuemin": 0, "aria-valuemax": 90,
    onpointerdown: (event) => {
      ball.setPointerCapture(event.pointerId);
      pick(event);
    },
    onpointermove: (event) => { if (event.buttons) pick(event); },
    onkeydown: (event) => {
      const [right, down] = {
        ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
      }[event.key] ?? [0, 0];
      if (!right && !down) return;
      event.preventDefault();
      face(-direction[0] + right / 12, -direction[1] + down / 12);
    },
  });

  // Where on the ball: from -1 to 1, to the right and down.
  const face = (right, down) => {
    const long = Math.max(Math.hypot(right, down), 1);
    const [x, y] = [-right / long, -down / long];
    direction = [x, y, Math.sqrt(Math.max(1 - x * x - y * y, 0))];
    show();
  };

  const pick = (event) => {
    const box = ball.getBoundingClientRect();
    face((event.clientX - box.left - box.width / 2) / RADIUS, (event.clientY - box.top - box.height / 2) / RADIUS);
  };

  const show = () => {
    const [x, y, z] = direction;
    const context = ball.getContext("2d");
    const pixels = context.createImageData(SIDE * 2, SIDE * 2);
    for (let row = 0; row < SIDE * 2; row += 1) {
      for (let column = 0; column < SIDE * 2; column += 1) {
        const [right, down] = [(column + 0.5) / 2 - SIDE / 2, (row + 0.5) / 2 - SIDE / 2].map((part) => part / RADIUS);
        const inside = 1 - right * right - down * down;
        if (inside < 0) continue;
        const colour = [-right, -down, Math.sqrt(inside)].map((part) => part * 127.5 + 127.5);
        pixels.data.set([...colour, 255], 4 * (row * SIDE * 2 + column));
      }
    }
    context.putImageData(pixels, 0, 0);
    context.beginPath();
    context.arc(SIDE - x * RADIUS * 2, SIDE - y * RADIUS * 2, 9, 0, 2 * Math.PI);
    context.fillStyle = rgb(direction);
    context.fill();
    for (const [colour, thick] of [["#000000", 6], ["#ffffff", 3]]) {
      context.strokeStyle = colour;
      context.lineWidth = thick;
      context.stroke();
    }
    const degrees = Math.round((Math.acos(z) * 180) / Math.PI);
    const sides = [x > 0.1 && "left", x < -0.1 && "right", y > 0.1 && "up", y < -0.1 && "down"].filter(Boolean);
    ball.setAttribute("aria-valuenow", degrees);
    ball.setAttribute("aria-valuetext", sides.length ? `${sides.join(" and ")}, ${degrees} degrees` : "towards the camera");
  };
  show();

  return surfaceEditor(canvas, {
    tools: [{ name: "brush", label: "Paint a direction", icon: "pen" }],
    hint: "Click the ball for a direction, and paint it; the sliders change the whole map.",
    ground: rgb([0, 0, 1]),
    build: () => [ball],
    strokeOf: () => ({ direction: direction.map((part) => Math.round(part * 1000) / 1000) }),
    colourOf: ({ direction: painted }) => rgb(painted),
  });
};
