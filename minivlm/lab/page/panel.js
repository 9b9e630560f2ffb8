// One method's picture: its patches as a grid of cells that can be reached by keyboard.

/** A new element with a class and text; the text is never read as HTML. */
function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

class Panel {
  constructor(data, method) {
    this.data = data;
    this.method = method;
    this.layout = null;
    this.cells = [];                        // the element of each token
    this.names = [];                        // "row 3, column 4" of each token; of several grids with the grid's name
    this.tokens = new Map();                // place in the picture, which all methods share -> token
    this.element = element("article", "panel");
    this.title = element("h2");
    this.button = element("button", "to-card", "card");
    this.button.type = "button";
    this.button.setAttribute("aria-label", `card of ${method}`);
    this.picture = element("div", "picture");
    this.caption = element("p", "caption");
    const head = element("div", "head");
    head.append(this.title, this.button);
    this.element.append(head, this.picture, this.caption);
  }

  /** Show the method at a budget when a layer begins. */
  show(budget, layer, mode) {
    this.run = runOf(this.data, this.method, budget);
    this.title.textContent = this.run ? this.run.label : this.method;
    this.button.hidden = !this.data.cards[this.method].length;
    if (!this.run || this.run.why_not) {
      this.refuse(this.run ? this.run.why_not : "it was not run at this budget");
      return;
    }
    if (this.layout !== this.run.layout) this.build(this.run.layout);
    this.situation = new Situation(this.data, this.run, layer);
    this.mark(mode);
    this.caption.replaceChildren(...this.words(layer, mode));
  }

  refuse(why) {
    this.layout = null;
    this.cells = [];
    this.tokens.clear();
    this.picture.replaceChildren();
    this.caption.textContent = `does not run here: ${why}`;
  }

  /** Lay the picture and its cells out. */
  build(number) {
    this.layout = number;
    const layout = this.data.layouts[number];
    const cells = list(this.data, layout.cells);
    this.cells = [];
    this.tokens.clear();
    const grids = layout.grids.map(grid => ({ ...grid, tokens: [] }));
    const off = { name: "on no patch", tokens: [], rows: 1, columns: 0 };     // class tokens, line breaks
    for (let token = 0; token < cells.length / 3; token += 1) {
      const [grid, row, column] = cells.slice(3 * token, 3 * token + 3);
      if (row < 0) off.tokens.push([token, 0, off.columns++]);
      else grids[grid].tokens.push([token, row, column]);
    }
    this.element.classList.toggle("several", grids.length > 1);
    this.picture.replaceChildren(...grids.map(grid => this.figure(grid, grids.length > 1)));
    if (off.columns) this.picture.append(this.figure(off, true));
    for (const token of layout.evidence) this.cells[token].classList.add("evidence");
  }

  /** A photo with its grid, or a grid without one, below its name if there are several. */
  figure(grid, isNamed) {
    const made = element("div", "figure");
    if (isNamed) made.append(element("p", "name", grid.name));
    const cells = this.grid(grid);
    if (!grid.size) {
      made.classList.add("off");
      made.append(cells);
      return made;
    }
    const photo = element("img");
    photo.alt = "";
    photo.src = this.data.photos[grid.photo];
    [photo.width, photo.height] = grid.size;
    place(cells, grid);
    const whole = element("div", "photo");
    whole.append(photo, cells);
    made.append(whole);
    return made;
  }

  grid(grid) {
    const made = element("div", "grid");
    made.setAttribute("role", "grid");
    made.classList.toggle("fine", grid.columns > 16);
    made.dataset.name = grid.name;
    made.style.setProperty("--columns", grid.columns);
    const rows = Array.from({ length: grid.rows }, () => element("div", "row"));
    for (const row of rows) row.setAttribute("role", "row");
    for (const [token, row, column] of [...grid.tokens].sort((a, b) => a[1] - b[1] || a[2] - b[2])) {
      rows[row].append(this.cell(token, grid, row, column));
    }
    made.append(...rows);
    const first = made.querySelector(".patch");
    if (first) first.tabIndex = 0;
    return made;
  }

  cell(token, grid, row, column) {
    const cell = element("div", "patch");
    cell.setAttribute("role", "gridcell");
    cell.tabIndex = -1;
    cell.dataset.token = token;
    this.cells[token] = cell;
    const several = this.data.layouts[this.layout].grids.length > 1;
    const name = `row ${row}, column ${column}`;
    let at = `layout ${this.layout}, token ${token}`;
    if (grid.offset) {
      const [above, left] = grid.offset;
      const rows = grid.rows + 2 * above;  // of OneVision's map made smaller not as many: its places are others
      at = `${grid.name}, ${row + above} of ${rows}, ${column + left}`;
      this.names[token] = several ? `${grid.name}, ${name}` : name;
    } else {
      this.names[token] = `token ${token}, on no patch`;
    }
    this.tokens.set(at, token);
    cell.dataset.place = at;
    return cell;
  }

  /** Set the classes and labels of all cells. */
  mark(mode) {
    for (const grid of this.picture.querySelectorAll(".grid")) {
      grid.setAttribute("aria-label", `${this.run.label}, ${grid.dataset.name}`);
    }
    this.element.dataset.mode = mode;
    this.cells.forEach((cell, token) => {
      const state = this.situation.state(token);
      for (const name of ["kept", "into", "dropped"]) cell.classList.toggle(name, name === state);
      cell.setAttribute("aria-label", `${this.names[token]}: ${this.fate(token)}`);
      this.markOne(cell, token, mode);
    });
  }

  markOne(cell, token, mode) {
    let mark = "";
    const judged = mode === "kept" ? null : this.situation.judged(token);
    delete cell.dataset.reason;
    cell.style.removeProperty("--share");
    if (mode === "kept" && this.situation.others(token).length) mark = "+";
    if (mode === "rank" && judged && judged.rank !== null) {
      mark = judged.rank;
      cell.style.setProperty("--share", judged.of > 1 ? (judged.of - judged.rank) / (judged.of - 1) : 1);
    }
    if (mode === "reason" && judged && judged.reason !== null) {
      mark = judged.reason + 1;
      cell.dataset.reason = judged.reason;
    }
    cell.dataset.mark = mark;
  }

  /** What has become of a token, in a few words. */
  fate(token) {
    const state = this.situation.state(token);
    const judged = this.situation.judged(token);
    if (state === "kept") return "in the sequence";
    if (state === "into") {
      const names = this.situation.into.get(token).map(other => this.names[other]);
      return `merged into ${names.join("; ")}`;
    }
    return judged && judged.masked ? "masked: no other token sees it" : "dropped";
  }

  /** The words below the picture. */
  words(layer, mode) {
    const N = this.cells.length;
    const enter = `${this.run.visual[layer]} of ${N} tokens enter layer ${layer}`;
    const count = layer < 0 ? `${N} tokens in the vision tower` : enter;
    const words = [`${count}. Answer: `, element("strong", "", this.run.answer || "(none)")];
    const note = mode === "kept" ? "" : this.note(mode);
    return note ? [...words, element("br"), note] : words;
  }

  note(mode) {
    const last = this.situation.steps.at(-1);
    if (!last) return "Nothing is dropped yet.";
    if (mode === "rank") return last.score === null ? "It has no score." : `Ranked: ${last.where}.`;
    if (!last.reasons.length) return "It keeps for one reason only.";
    const reason = list(this.data, last.reason);
    const counted = last.reasons.map((name, i) => `${i + 1} ${name}: ${reason.filter(each => each === i).length}`);
    return counted.join(", ");
  }
}

/** Put a grid where it lies on the photo, as shares of it. */
function place(made, grid) {
  const [width, height] = grid.size;
  const [wide, high] = grid.patch;
  made.style.left = `${100 * grid.left / width}%`;
  made.style.top = `${100 * grid.top / height}%`;
  made.style.width = `${100 * wide * grid.columns / width}%`;
  made.style.height = `${100 * high * grid.rows / height}%`;
}
