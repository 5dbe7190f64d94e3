// People as joints to drag: OpenPose's 18, with the hands and the face that were found.
const POSES = {
  // x from the middle and y from the top, in heights of a person.
  Standing: [[0, .08], [0, .18], [-.1, .19], [-.13, .34], [-.15, .48], [.1, .19], [.13, .34], [.15, .48], [-.06, .5], [-.07, .73], [-.08, .96], [.06, .5], [.07, .73], [.08, .96], [-.02, .06], [.02, .06], [-.05, .07], [.05, .07]],
  Waving: [[0, .08], [0, .18], [-.1, .19], [-.2, .1], [-.17, -.05], [.1, .19], [.13, .34], [.15, .48], [-.06, .5], [-.07, .73], [-.08, .96], [.06, .5], [.07, .73], [.08, .96], [-.02, .06], [.02, .06], [-.05, .07], [.05, .07]],
  "Arms out": [[0, .08], [0, .18], [-.1, .19], [-.25, .19], [-.4, .19], [.1, .19], [.25, .19], [.4, .19], [-.06, .5], [-.08, .73], [-.1, .96], [.06, .5], [.08, .73], [.1, .96], [-.02, .06], [.02, .06], [-.05, .07], [.05, .07]],
  Walking: [[.01, .08], [0, .18], [-.07, .19], [-.14, .33], [-.06, .45], [.07, .19], [.13, .33], [.2, .42], [-.04, .5], [.08, .7], [.1, .95], [.04, .5], [-.06, .72], [-.18, .92], [0, .06], [.03, .06], [-.04, .07], [.05, .07]],
  Sitting: [[0, .2], [0, .31], [-.1, .32], [-.13, .47], [-.08, .58], [.1, .32], [.13, .47], [.08, .58], [-.06, .62], [-.16, .66], [-.16, .92], [.06, .62], [.16, .66], [.16, .92], [-.02, .18], [.02, .18], [-.05, .19], [.05, .19]],
};
const PARENTS = [1, null, 1, 2, 3, 1, 5, 6, 1, 8, 9, 1, 11, 12, 0, 0, 14, 15];
const TWINS = [0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16];
const WRISTS = [4, 7];

const below = (joint) =>
  PARENTS.flatMap((parent, child) => (parent === joint ? [child, ...below(child)] : []));

// Everything of a person moved by a function of places.
const mapPerson = (person, move) => {
  const all = (points) => points.map((point) => point && move(point).map(rounded));
  return {
    ...person,
    body: all(person.body),
    ...(person.hands ? { hands: person.hands.map(all) } : {}),
    ...(person.face ? { face: all(person.face) } : {}),
  };
};

const boxOf = ({ body }) => {
  const seen = body.filter(Boolean);
  const [xs, ys] = [seen.map(([x]) => x), seen.map(([, y]) => y)];
  const [left, top] = [Math.min(...xs), Math.min(...ys)];
  return { left, top, right: Math.max(...xs), bottom: Math.max(...ys) };
};

const middleOf = (person) => {
  const { left, top, right, bottom } = boxOf(person);
  return [(left + right) / 2, (top + bottom) / 2];
};

// OpenPose's JSON: lists of x, y, confidence, in pixels or as fractions; zeros are not seen.
const fromOpenPose = (given, size, { joints: names, body25, unit }) => {
  const frame = Array.isArray(given) ? given[0] : given;
  const [width, height] = [frame.canvas_width ?? size[0], frame.canvas_height ?? size[1]];
  const lists = frame.people.map((one) => ({
    body: one.pose_keypoints_2d ?? [],
    hands: [one.hand_left_keypoints_2d, one.hand_right_keypoints_2d],
    face: one.face_keypoints_2d,
  }));
  const largest = Math.max(...lists.flatMap(({ body }) => body.filter((_, i) => i % 3 < 2)));
  const isUnit = largest <= unit;
  const points = (list) => Array.from({ length: Math.floor((list ?? []).length / 3) }, (_, i) => {
    const [x, y, sure] = list.slice(3 * i, 3 * i + 3);
    if ((x <= 0 && y <= 0) || !sure) return null;
    return [rounded(isUnit ? x * width : x), rounded(isUnit ? y * height : y)];
  });
  const people = lists.map(({ body, hands, face }) => {
    const joints = points(body);
    const found = hands.map(points).filter((hand) => hand.some(Boolean));
    const dots = points(face);
    return {
      body: joints.length > names.length ? body25.map((k) => joints[k] ?? null) : joints,
      ...(found.length ? { hands: found } : {}),
      ...(dots.some(Boolean) ? { face: dots } : {}),
    };
  });
  return { size: [width, height], people };
};

const toOpenPose = ({ size, people }) => {
  const flat = (points) => points.flatMap((point) => (point ? [...point, 1] : [0, 0, 0]));
  return {
    canvas_width: size[0],
    canvas_height: size[1],
    people: people.map(({ body, hands = [], face = [] }) => ({
      pose_keypoints_2d: flat(body),
      hand_left_keypoints_2d: flat(hands[0] ?? []),
      hand_right_keypoints_2d: flat(hands[1] ?? []),
      face_keypoints_2d: flat(face),
    })),
  };
};

editors.pose = (canvas) => {
  const { joints: names, limbs, colours, limbColours, radius, halfWidth } = canvas.facts;
  const rgb = (colour) => `rgb(${colour.join(" ")})`;
  let chosen = { person: -1, joint: -1 };
  let drag = null; // { from: [x, y], before: person, kind }
  let moved = null; // the person while it is dragged
  let keepsLengths = true;
  canvas.opacity.photo = 0.5;

  const people = () => canvas.value?.people ?? [];
  const current = () => moved ?? people()[chosen.person];
  const commit = (next) => canvas.commit({ size: canvas.size, people: next });
  const replace = (person) => commit(people().map((one, i) => (i === chosen.person ? person : one)));
  const reach = () => Math.max(radius + 2, 14 / canvas.scale);

  const near = (point) => {
    let best = { person: -1, joint: -1, apart: reach() };
    people().forEach(({ body }, person) => body.forEach((place, joint) => {
      if (!place) return;
      const apart = Math.hypot(place[0] - point.x, place[1] - point.y);
      // Of joints that lie on each other the chosen person's comes first.
      if (apart < best.apart - (person === chosen.person ? 0 : 0.5)) best = { person, joint, apart };
    }));
    return best;
  };

  const inside = (point) => people().findIndex((person) => {
    const { left, top, right, bottom } = boxOf(person);
    const rim = reach();
    return point.x > left - rim && point.x < right + rim && point.y > top - rim && point.y < bottom + rim;
  });

  const handles = (person) => {
    const { left, top, right, bottom } = boxOf(person);
    const rim = 16 / canvas.scale;
    return { scale: [right + rim, bottom + rim], turn: [(left + right) / 2, top - 2 * rim] };
  };

  // A hand goes with its wrist, the face with the nose; with fixed lengths, so does all below.
  const withJoint = (person, joint, [x, y]) => {
    const old = person.body[joint];
    let to = [x, y];
    const parent = person.body[PARENTS[joint] ?? -1];
    if (keepsLengths && parent && old) {
      const length = Math.hypot(old[0] - parent[0], old[1] - parent[1]);
      const now = Math.hypot(x - parent[0], y - parent[1]) || 1;
      to = parent.map((from, axis) => from + (([x, y][axis] - from) * length) / now);
    }
    const by = old ? [to[0] - old[0], to[1] - old[1]] : [0, 0];
    const shift = (point) => point && [rounded(point[0] + by[0]), rounded(point[1] + by[1])];
    const along = keepsLengths && old ? below(joint) : [];
    const takes = [joint, ...along];
    const hands = person.hands?.map((hand) => {
      const wrist = WRISTS.filter((k) => person.body[k] && hand[0]).sort((a, b) =>
        Math.hypot(person.body[a][0] - hand[0][0], person.body[a][1] - hand[0][1]) -
        Math.hypot(person.body[b][0] - hand[0][0], person.body[b][1] - hand[0][1]))[0];
      return takes.includes(wrist) ? hand.map(shift) : hand;
    });
    return {
      ...person,
      body: person.body.map((place, k) => {
        if (k === joint) return to.map(rounded);
        return along.includes(k) ? shift(place) : place;
      }),
      ...(hands ? { hands } : {}),
      ...(person.face ? { face: takes.includes(0) ? person.face.map(shift) : person.face } : {}),
    };
  };

  const changedBy = (kind, before, point) => {
    const [dx, dy] = [point.x - drag.from[0], point.y - drag.from[1]];
    if (kind === "joint") {
      const [x, y] = before.body[chosen.joint];
      return withJoint(before, chosen.joint, [x + dx, y + dy]);
    }
    if (kind === "move") return mapPerson(before, ([x, y]) => [x + dx, y + dy]);
    const [cx, cy] = middleOf(before);
    if (kind === "scale") {
      const size = Math.hypot(drag.from[0] - cx, drag.from[1] - cy);
      const factor = Math.max(Math.hypot(point.x - cx, point.y - cy) / size, 0.1);
      return mapPerson(before, ([x, y]) => [cx + (x - cx) * factor, cy + (y - cy) * factor]);
    }
    const angle = Math.atan2(point.y - cy, point.x - cx) - Math.atan2(drag.from[1] - cy, drag.from[0] - cx);
    const [sin, cos] = [Math.sin(angle), Math.cos(angle)];
    return mapPerson(before, ([x, y]) => [
      cx + (x - cx) * cos - (y - cy) * sin, cy + (x - cx) * sin + (y - cy) * cos]);
  };

  const paintPerson = (context, { body, hands = [], face = [] }) => {
    limbs.forEach(([a, b], k) => {
      if (!body[a] || !body[b]) return;
      const [[ax, ay], [bx, by]] = [body[a], body[b]];
      context.fillStyle = rgb(limbColours[k]);
      context.beginPath();
      context.ellipse((ax + bx) / 2, (ay + by) / 2, Math.hypot(ax - bx, ay - by) / 2, halfWidth,
        Math.atan2(ay - by, ax - bx), 0, 2 * Math.PI);
      context.fill();
    });
    const dots = (points, size, colour) => points.forEach((place, k) => {
      if (!place) return;
      context.fillStyle = rgb(colour ?? colours[k]);
      context.beginPath();
      context.arc(place[0], place[1], size, 0, 2 * Math.PI);
      context.fill();
    });
    dots(body, radius);
    hands.forEach((hand) => dots(hand, radius / 2, [0, 0, 255]));
    dots(face, 1.5, [255, 255, 255]);
  };

  const missing = node("select", {
    class: "cv-field", "aria-label": "Bring a missing joint back",
    onchange: ({ target }) => {
      const joint = Number(target.value);
      const { body } = people()[chosen.person];
      const parent = PARENTS[joint] ?? 0;
      const [x, y] = body[parent] ?? middleOf({ body });
      const twin = body[TWINS[joint]];
      const place = twin && body[parent] ? [2 * x - twin[0], twin[1]] : [x, y + canvas.size[1] / 12];
      replace({ ...people()[chosen.person], body: body.map((one, k) => (k === joint ? place.map(rounded) : one)) });
    },
  });
  const leaveOut = () => {
    const person = people()[chosen.person];
    const body = person.body.map((place, k) => (k === chosen.joint ? null : place));
    chosen.joint = -1;
    if (body.some(Boolean)) replace({ ...person, body });
    else commit(people().filter((one) => one !== person));
  };
  const ofPerson = [];
  let ofJoint = null; // the toolbar's button
  const tell = () => {
    const person = people()[chosen.person];
    for (const button of ofPerson) button.disabled = !person;
    if (ofJoint) ofJoint.disabled = !person?.body[chosen.joint];
    const gone = person ? names.map((name, k) => [k, name]).filter(([k]) => !person.body[k]) : [];
    missing.replaceChildren(node("option", { value: "" }, `Missing joints (${gone.length})`),
      ...gone.map(([k, name]) => node("option", { value: k }, name)));
    missing.disabled = !gone.length;
    canvas.opacity.drawn = canvas.value ? 0 : 1; // a map that was given lies below, to be traced
    const count = people().length;
    const name = names[chosen.joint] ?? "";
    const which = name && person ? `${name[0].toUpperCase()}${name.slice(1)} of person ${chosen.person + 1}. ` : "";
    canvas.say(`${which}${count ? "Drag a joint; Leave out takes the chosen one away." : "Nobody is here: add a person."} `
      + "The tool Person moves, scales and turns a whole one.");
  };

  const addPerson = (name) => {
    const [width, height] = canvas.size;
    const tall = height * 0.8;
    const aside = people().length ? 0.18 * ((people().length % 3) - 1) : 0;
    const reach = Math.max(...POSES[name].map(([dx]) => Math.abs(dx))) * tall + 0.03 * width;
    const x = width * 0.5 + Math.sign(aside) * Math.max(Math.min(width * Math.abs(aside), width * 0.5 - reach), 0);
    const body = POSES[name].map(([dx, y]) => [rounded(x + dx * tall), rounded(height * 0.12 + y * tall)]);
    chosen = { person: people().length, joint: -1 };
    commit([...people(), { body }]);
  };

  const file = node("input", {
    type: "file", accept: ".json,application/json", hidden: true,
    onchange: async ({ target }) => {
      const [picked] = target.files;
      target.value = "";
      if (!picked) return;
      try {
        const given = JSON.parse(await picked.text());
        chosen = { person: -1, joint: -1 };
        canvas.commit(fromOpenPose(given, canvas.size, canvas.facts));
      } catch (error) {
        console.warn(error);
        canvas.say(`${picked.name} is not OpenPose's JSON: it needs "people" with "pose_keypoints_2d".`);
      }
    },
  });

  return {
    ground: "#000000",
    hint: "",
    tools: [
      { name: "joints", label: "Joints: drag one", key: "v", icon: "pen" },
      { name: "person", label: "Person: move, scale and turn", key: "p", icon: "move" },
    ],
    build(toolbar) {
      const button = (...facts) => {
        const made = bar.button(...facts);
        ofPerson.push(made);
        return made;
      };
      toolbar.append(
        bar.group("People",
          node("select", {
            class: "cv-field", "aria-label": "Add a person",
            onchange: ({ target }) => {
              addPerson(target.value);
              target.value = "";
            },
          }, node("option", { value: "" }, "Add a person"), ...Object.keys(POSES).map((name) => node("option", {}, name))),
          button("Duplicate", "copy", () => {
            const copy = mapPerson(people()[chosen.person], ([x, y]) => [x + canvas.size[0] / 8, y]);
            chosen = { person: people().length, joint: -1 };
            commit([...people(), copy]);
          }),
          button("Mirror", "mirror", () => {
            const [cx] = middleOf(people()[chosen.person]);
            const turned = mapPerson(people()[chosen.person], ([x, y]) => [2 * cx - x, y]);
            replace({ ...turned, body: TWINS.map((k) => turned.body[k]) });
          }),
          button("Delete this person", "clear", () => {
            const gone = chosen.person;
            chosen = { person: -1, joint: -1 };
            commit(people().filter((_, i) => i !== gone));
          })),
        bar.group("Joints",
          bar.toggle("Limbs keep their length", "Keep lengths", (on) => { keepsLengths = on; }, true),
          ofJoint = bar.button("Leave out the chosen joint", "Leave out", leaveOut, "Delete"), missing),
        node("details", { class: "cv-more" }, node("summary", {}, "Picture and files"),
          node("div", { class: "cv-menu" },
            bar.range("Picture", 0, 100, 5, 50, (part) => {
              canvas.opacity.photo = part / 100;
              canvas.redraw();
            }),
            bar.button("Open OpenPose JSON", "Open OpenPose JSON", () => file.click()),
            bar.button("Save OpenPose JSON", "Save OpenPose JSON", () =>
              saveAs("pose.json", JSON.stringify(toOpenPose({ size: canvas.size, people: people() })), "application/json")))),
        file,
      );
      tell();
    },
    changed() {
      if (!people()[chosen.person]) chosen = { person: -1, joint: -1 };
      if (chosen.person < 0 && people().length === 1) chosen.person = 0;
      tell();
    },
    paint: (context, value) => (value?.people ?? []).forEach((person, i) => {
      if (!(moved && i === chosen.person)) paintPerson(context, person);
    }),
    overlay(context) {
      const person = current();
      if (!person) return;
      if (moved) paintPerson(context, moved);
      context.lineWidth = 2 / canvas.scale;
      context.strokeStyle = "#ffffff";
      const place = person.body[chosen.joint];
      if (place) {
        context.beginPath();
        context.arc(place[0], place[1], radius + 4 / canvas.scale, 0, 2 * Math.PI);
        context.stroke();
      }
      if (canvas.tool !== "person") return;
      const { left, top, right, bottom } = boxOf(person);
      const rim = 8 / canvas.scale;
      context.setLineDash([4 / canvas.scale, 4 / canvas.scale]);
      context.strokeRect(left - rim, top - rim, right - left + 2 * rim, bottom - top + 2 * rim);
      context.setLineDash([]);
      for (const [x, y] of Object.values(handles(person))) {
        context.fillStyle = "#2dd4bf";
        context.beginPath();
        context.arc(x, y, 7 / canvas.scale, 0, 2 * Math.PI);
        context.fill();
      }
    },
    down(point) {
      const from = [point.x, point.y];
      const person = people()[chosen.person];
      if (canvas.tool === "person") {
        const at = person && Object.entries(handles(person)).find(([, [x, y]]) =>
          Math.hypot(x - point.x, y - point.y) < 16 / canvas.scale);
        if (!at) chosen = { person: inside(point), joint: -1 };
        if (people()[chosen.person]) drag = { from, before: people()[chosen.person], kind: at?.[0] ?? "move" };
      } else {
        const { person: found, joint } = near(point);
        chosen = { person: found < 0 ? inside(point) : found, joint };
        if (found >= 0) drag = { from, before: people()[found], kind: "joint" };
      }
      tell();
    },
    move(point) {
      if (!drag) return;
      if (!moved && Math.hypot(point.x - drag.from[0], point.y - drag.from[1]) * canvas.scale < 3) return;
      moved = changedBy(drag.kind, drag.before, point);
      canvas.redraw();
    },
    up(point) {
      this.move(point);
      const made = moved;
      this.cancel();
      if (made) replace(made);
    },
    cancel() {
      drag = moved = null;
      canvas.redraw();
    },
    hover(point) {
      const { person, joint } = near(point);
      canvas.screen.style.cursor = person < 0 ? "default" : "grab";
      canvas.screen.title = person < 0 ? "" : names[joint];
    },
    key(event) {
      const person = people()[chosen.person];
      const { joint } = chosen;
      if (!person) return false;
      if (["Delete", "Backspace"].includes(event.key) && joint >= 0) {
        leaveOut();
        return true;
      }
      const [dx, dy] = {
        ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
      }[event.key] ?? [0, 0];
      if (joint < 0 || (!dx && !dy)) {
        const step = { "]": 1, "[": -1 }[event.key];
        if (!step) return false;
        const seen = names.map((_, k) => k).filter((k) => person.body[k]);
        chosen.joint = seen[(seen.indexOf(joint) + step + seen.length) % seen.length];
        tell();
        canvas.redraw();
        return true;
      }
      const by = event.shiftKey ? 8 : 2;
      const [x, y] = person.body[joint];
      replace(withJoint(person, joint, [x + dx * by, y + dy * by]));
      return true;
    },
  };
};
