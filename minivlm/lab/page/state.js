"use strict";
// What the data says; nothing in this file touches the page. data.py tells how the data is built.

/** The list that has this number; null for null. */
function list(data, number) {
  return number === null ? null : data.lists[number];
}

/** Map from each token of a list to its place there, made once for each list. */
function places(data, number) {
  data.places = data.places || new Map();
  if (!data.places.has(number)) {
    const tokens = list(data, number);
    data.places.set(number, new Map(tokens.map((token, place) => [token, place])));
  }
  return data.places.get(number);
}

/** The run of a method at a budget, or the one that it has without a budget. */
function runOf(data, method, budget) {
  const own = data.runs.filter(run => run.method === method);
  return own.find(run => run.budget === budget) || own.find(run => run.budget === null);
}

/** What has become of the tokens of a run when a layer begins. Layer -1: in the vision tower, where all are there. */
class Situation {
  constructor(data, run, layer) {
    this.data = data;
    this.steps = run.steps.filter(step => step.layer <= layer);
    this.kept = null;                       // Map from a token in the sequence to its place; null: all are in it
    this.sources = new Map();               // token in the sequence -> [[token, weight], ..] that it is made of
    this.into = new Map();                  // token that is not in it -> tokens that it was merged into
    const last = this.steps.at(-1);
    if (last) this.read(last);
  }

  read(step) {
    this.kept = places(this.data, step.kept);
    const kept = list(this.data, step.kept);
    for (const [i, tokens, weights] of list(this.data, step.merged)) {
      tokens.forEach((token, j) => {
        const weight = Array.isArray(weights) ? weights[j] : weights;
        append(this.sources, kept[i], [token, weight]);
        if (!this.kept.has(token)) append(this.into, token, kept[i]);
      });
    }
  }

  /** "kept", "into" (merged into another) or "dropped". */
  state(token) {
    if (this.kept === null || this.kept.has(token)) return "kept";
    return this.into.has(token) ? "into" : "dropped";
  }

  /** The other tokens that were merged into a token, with their weights. */
  others(token) {
    return (this.sources.get(token) || []).filter(([source]) => source !== token);
  }

  /** What the last step that was given the token said of it; null before the first step. */
  judged(token) {
    const step = this.steps.findLast(each => places(this.data, each.source).has(token));
    if (!step) return null;
    const place = places(this.data, step.source).get(token);
    const row = places(this.data, step.kept).get(token);
    const score = list(this.data, step.score);
    const rank = list(this.data, step.rank);
    const reason = list(this.data, step.reason);
    const hasReason = reason !== null && row !== undefined;
    return {
      where: step.where,
      masked: step.masked,
      of: list(this.data, step.source).length,
      score: score && score[place],
      rank: rank && rank[place],
      reason: hasReason ? reason[row] : null,
      reasons: step.reasons,
    };
  }
}

/** Add a value to the list that a map has for a key. */
function append(map, key, value) {
  if (!map.has(key)) map.set(key, []);
  map.get(key).push(value);
}

/** A number as people write it: 0.0123, 1.2e-7. */
function digits(number) {
  return number === null ? "infinite" : String(number);
}
