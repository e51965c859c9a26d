// Where the stages of a pipeline stand in its picture. Pure: layers by the longest way from the request, and in each layer the
// order of what a stage reads. An edge that passes a layer has a place in it, so that it goes around the stages there.

const BEND = 8;

/** `{width, height, nodes: [{stage, x, y}], edges: [{edge, points}]}`; points are centres that the edge goes through. */
export function layout(pipeline, { across, size, gap, step }) {
  const layers = layered(pipeline.stages);
  const depth = new Map(layers.flatMap((layer, at) => layer.map((stage) => [stage.stage_id, at])));
  const rows = layers.map((layer) => layer.map((stage) => ({ stage, parents: stage.sources, breadth: across ? size.height : size.width })));
  const ways = pipeline.edges.map((edge) => way(edge, depth, rows, BEND));
  place(rows, gap);
  const centre = new Map();
  const breadth = Math.max(...rows.map((row) => row.total));
  const length = across ? size.width : size.height;
  rows.forEach((row, at) => {
    for (const item of row) {
      const main = at * (length + step) + length / 2;
      const cross = item.at + (breadth - row.total) / 2;
      centre.set(item, across ? { x: main, y: cross } : { x: cross, y: main });
    }
  });
  const all = rows.flat();
  const along = rows.length * (length + step) - step;
  return {
    width: across ? along : breadth,
    height: across ? breadth : along,
    nodes: all.filter((item) => item.stage).map((item) => ({ stage: item.stage, ...centre.get(item) })),
    edges: ways.map(({ edge, items }) => ({ edge, points: items.map((item) => centre.get(item)) })),
  };
}

function layered(stages) {
  const depth = new Map();
  const known = new Map(stages.map((stage) => [stage.stage_id, stage]));
  const deep = (stage) => {
    if (!depth.has(stage.stage_id)) {
      const before = stage.sources.filter((source) => known.has(source)).map((source) => deep(known.get(source)) + 1);
      depth.set(stage.stage_id, Math.max(0, ...before));
    }
    return depth.get(stage.stage_id);
  };
  const layers = [];
  for (const stage of stages) (layers[deep(stage)] ??= []).push(stage);
  return layers;
}

/** The items that an edge goes through, with a bend in every layer between its ends. */
function way(edge, depth, rows, breadth) {
  const item = (id) => rows[depth.get(id)].find((one) => one.stage?.stage_id === id);
  const items = [item(edge.source)];
  for (let at = depth.get(edge.source) + 1; at < depth.get(edge.target); at += 1) {
    const bend = { bendOf: items.at(-1), breadth };
    rows[at].push(bend);
    items.push(bend);
  }
  const end = item(edge.target);
  if (items.length > 1) items.at(-1).leadsTo = end;
  return { edge, items: [...items, end] };
}

/** Order the rows so that few edges cross, and give each item its place in its row. */
function place(rows, gap) {
  for (const down of [true, false, true]) {
    for (const row of down ? rows.slice(1) : rows.slice(0, -1).reverse()) sort(row, down ? before : after);
  }
  for (const row of rows) {
    let at = 0;
    for (const item of row) {
      item.at = at + item.breadth / 2;
      at += item.breadth + gap;
    }
    row.total = at - gap;
  }

  function before(item) {
    return rows.flat().filter((one) => (item.bendOf ? one === item.bendOf : item.parents.includes(one.stage?.stage_id)));
  }

  function after(item) {
    return rows.flat().filter((one) => one.bendOf === item || (item.stage && one.parents?.includes(item.stage.stage_id)) || item.leadsTo === one);
  }

  /** Sort by the middle of an item's neighbours, each by its part of its own row; those without keep their place. */
  function sort(row, neighbours) {
    const part = (item) => {
      const own = rows.find((one) => one.includes(item));
      return (own.indexOf(item) + 0.5) / own.length;
    };
    const middle = (item) => {
      const near = neighbours(item);
      return near.length ? near.reduce((sum, one) => sum + part(one), 0) / near.length : part(item);
    };
    const order = new Map(row.map((item, at) => [item, middle(item) + at / 1000]));
    row.sort((one, other) => order.get(one) - order.get(other));
  }
}
