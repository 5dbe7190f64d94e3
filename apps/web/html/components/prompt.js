// What stands under the prompt: how many tokens it has, which of its words the model does not know,
// and the words it knows. Runs once, when the component is there (gr.HTML's js_on_load): `element` is
// the component, `server` its Python functions. Text from outside goes in as textContent.
//
// A prompt is read as core/prompt_syntax.py and models/text.py read it;
// tests/apps/web/test_prompt_help.py compares the counts.
const CHUNK = 75, MOST_CHUNKS = 8, COMMA_REACH = 20, MAX_WEIGHT = 10, STEP = 1.1;
const FACTORS = { "(": STEP, "[": 1 / STEP };
const SIGN = /\\([()[\]\\]?)|([([])|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|([)\]])|\s*\b(BREAK)\b\s*/g;
const TAG = /<(?:lora|lyco|hypernet):[^<>:]+(?::[^<>]*)?>/gi;
const WORDS = /<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+/gu;
const SHOWN = 60; // characters of what is left out
const PAUSE_MS = 150; // without a key, before a prompt is read

const part = (name) => element.querySelector(`[data-part="${name}"]`);

// Weights and BREAK: the texts of each section, neighbours of one weight joined.
const sections = (prompt) => {
  const found = [], opened = [];
  const add = (text) => found.push({ text, weight: 1 });
  const multiply = (first, factor) => {
    for (const piece of found.slice(first)) {
      piece.weight = Math.max(-MAX_WEIGHT, Math.min(piece.weight * factor, MAX_WEIGHT));
    }
  };
  let end = 0;
  for (const sign of prompt.matchAll(SIGN)) {
    const [whole, escaped, open, number, close, chunk] = sign;
    if (sign.index > end) add(prompt.slice(end, sign.index));
    end = sign.index + whole.length;
    const wanted = close === "]" ? "[" : "(";
    const index = opened.findLastIndex((one) => one.bracket === wanted);
    if (escaped !== undefined) add(escaped);
    else if (open) opened.push({ bracket: open, first: found.length });
    else if (chunk) add(null);
    else if (index < 0) add(whole);
    else {
      const [{ first }] = opened.splice(index, 1);
      let factor = number === undefined ? FACTORS[wanted] : Number(number);
      if (Math.abs(factor) > MAX_WEIGHT) {
        add(whole.slice(0, -1));
        factor = FACTORS[wanted];
      }
      multiply(first, factor);
    }
  }
  if (prompt.length > end) add(prompt.slice(end));
  for (const bracket of "([") {
    for (const one of opened) if (one.bracket === bracket) multiply(one.first, FACTORS[bracket]);
  }
  const made = [[]];
  for (const { text, weight } of found) {
    const last = made.at(-1).at(-1);
    if (text === null) made.push([]);
    else if (last && last.weight === weight) last.text += text;
    else made.at(-1).push({ text, weight });
  }
  return made.map((section) => section.map((piece) => piece.text));
};

// CLIP's byte-level BPE: how many tokens a word has.
const BYTES = (() => {
  const shown = [...Array(256).keys()].filter((n) => (n > 32 && n < 127) || (n > 160 && n < 173) || n > 173);
  let next = 256;
  return [...Array(256).keys()].map((n) => String.fromCodePoint(shown.includes(n) ? n : next++));
})();

const counter = (merges) => {
  const ranks = new Map(merges.map((pair, rank) => [pair, rank]));
  const known = new Map();
  return (word) => {
    if (!known.has(word)) {
      const symbols = [...new TextEncoder().encode(word)].map((byte) => BYTES[byte]);
      symbols[symbols.length - 1] += "</w>";
      for (;;) {
        let best = Infinity, at = -1;
        for (let n = 0; n + 1 < symbols.length; n += 1) {
          const rank = ranks.get(`${symbols[n]} ${symbols[n + 1]}`) ?? Infinity;
          if (rank < best) [best, at] = [rank, n];
        }
        if (at < 0) break;
        symbols.splice(at, 2, symbols[at] + symbols[at + 1]);
      }
      known.set(word, word.startsWith("<|") && word.endsWith("text|>") ? 1 : symbols.length);
    }
    return known.get(word);
  };
};

// Chunks of at most 75 tokens; a token is { comma, rest }, the text from it on to its piece's end.
const split = (tokens) => {
  const chunks = [[]];
  let comma = -1;
  for (const token of tokens) {
    const length = chunks.at(-1).length;
    if (token.comma) comma = length;
    else if (length === CHUNK && comma >= 0 && length - comma <= COMMA_REACH) {
      chunks.push(chunks.at(-1).splice(comma + 1));
      comma = -1;
    }
    if (chunks.at(-1).length === CHUNK) {
      chunks.push([]);
      comma = -1;
    }
    chunks.at(-1).push(token);
  }
  return chunks;
};

const read = (prompt, count) => {
  let pieces = 0;
  const chunks = [];
  const made = sections(prompt.replace(TAG, ""));
  made.forEach((section, n) => {
    const tokens = section.flatMap((text) => {
      const clean = text.normalize("NFC").toLowerCase();
      pieces += 1;
      return [...clean.matchAll(WORDS)].flatMap((word, index) =>
        Array(count(word[0])).fill({ comma: word[0] === ",", rest: text.slice(index && word.index), piece: pieces }));
    });
    const filled = split(tokens);
    const empty = filled.length === 1 && !filled[0].length;
    if (n + 1 < made.length || !empty || !chunks.length) chunks.push(...filled);
  });
  const dropped = chunks.slice(MOST_CHUNKS).flat();
  return {
    tokens: chunks.slice(0, MOST_CHUNKS).flat().length,
    chunks: Math.min(chunks.length, MOST_CHUNKS),
    dropped: dropped.filter((one, n) => !n || one.piece !== dropped[n - 1].piece)
      .map((one) => one.rest).join("").trim(),
  };
};

const told = ({ tokens, chunks, dropped }) => {
  if (dropped) {
    const words = dropped.length > SHOWN ? `${dropped.slice(0, SHOWN)}…` : dropped;
    return `${tokens} tokens are read, no more; left out: ${words}`;
  }
  return chunks > 1 ? `${tokens} tokens in ${chunks} chunks of ${CHUNK}` : `${tokens} of ${CHUNK} tokens`;
};

// Words that the model does not know; not the one that is being typed.
const unknown = (prompt, known) => {
  const texts = sections(prompt.replace(TAG, "")).flat().join(" ").toLowerCase();
  const words = texts.match(/\p{L}+/gu) ?? [];
  const typing = /\p{L}$/u.test(texts) && words.at(-1);
  return [...new Set(words)].filter((word) =>
    !known.has(word) && !(word === typing && [...known].some((one) => one.startsWith(word))));
};

// The words it knows, each a button that adds it to the prompt.
const addWord = (word) => {
  const box = document.querySelector("#prompt textarea");
  const before = box.value.trimEnd();
  const goesOn = !before || /(?:^|[\s,])(?:an?|and|in|of|on|with)$|,$/.test(before);
  const join = !before ? "" : / /.test(word) && /^an? /.test(word) && !goesOn ? ", " : " ";
  box.value = word.endsWith(" of") && before ? `${word} ${before}` : before + join + word;
  box.dispatchEvent(new Event("input", { bubbles: true }));
  box.dispatchEvent(new Event("change", { bubbles: true }));
};

const offer = ({ title, words }) => {
  const groups = Object.entries(words);
  part("words").hidden = !groups.length;
  part("title").textContent = `Words that ${title} knows`;
  part("groups").replaceChildren(...groups.map(([name, list]) => {
    const group = Object.assign(document.createElement("div"), { role: "group", ariaLabel: name });
    group.append(Object.assign(document.createElement("span"), { textContent: name }));
    for (const word of list) {
      group.append(Object.assign(document.createElement("button"), { type: "button", textContent: word }));
    }
    return group;
  }));
};

const models = new Map(); // facts of each model that was chosen, or a promise of them
const factsOf = (model) => {
  if (!models.has(model)) models.set(model, server.prompt_facts(model));
  return models.get(model);
};
const counters = new Map();
const counterOf = (model) => {
  if (!counters.has(model)) {
    counters.set(model, server.token_merges(model).then((merges) => (merges?.length ? counter(merges) : null)));
  }
  return counters.get(model);
};

let shown = "";
const show = async () => {
  const given = window.clPrompt;
  const prompt = [given.prompt, given.added].filter((text) => text?.trim()).join(", ");
  const facts = await factsOf(given.model);
  if (given !== window.clPrompt || !facts) return;
  if (shown !== given.model) offer(facts);
  shown = given.model;
  const known = new Set(Object.values(facts.words).flat().flatMap((text) => text.match(/\p{L}+/gu)));
  const missing = known.size ? unknown(prompt, known) : [];
  const line = missing.length ? `${facts.title} does not know: ${missing.join(", ")}` : "";
  if (part("unknown").textContent !== line) part("unknown").textContent = line;
  if (!prompt && !counters.has(given.model)) return; // the merges may be large
  const count = await counterOf(given.model);
  if (given === window.clPrompt) part("tokens").textContent = count ? told(read(prompt, count)) : "";
};

let pause = 0;
window.clShowPrompt = () => {
  clearTimeout(pause);
  pause = setTimeout(show, PAUSE_MS);
};
element.addEventListener("click", (event) => {
  const word = event.target.closest("[data-part=groups] button");
  if (word) addWord(word.textContent);
});
if (window.clPrompt) window.clShowPrompt();
