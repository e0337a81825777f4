/** Layer Board: puts the board into the node, and tells it what was made of it. */

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { Board } from "./board/board.js";
import { FileError } from "./board/files.js";
import { withWords } from "./board/state.js";
import { WORDS } from "./board/words.js";
import { addEditor, address, growTo, language, outputKey, prepare, remember, resolved } from "./editor/host.js";
import { wordsOf } from "./editor/words.js";

const NODE = "LD_LayerBoard";
const RESULT = "layered_diffusion_result"; // the node's property with the last result, so that it is there after a reload
const FOLDER = "layered_diffusion"; // of the input folder, for painted masks

/** Put a file into the input folder. Masks have a folder of their own there. @returns {Promise<string>} its name there */
async function upload(file, name) {
  const body = new FormData();
  body.append("image", new File([file], name, { type: file.type }));
  if (/^mask_\w+\.png$/.test(name)) body.append("subfolder", FOLDER);
  let answer;
  try {
    answer = await api.fetchApi("/upload/image", { method: "POST", body });
  } catch {
    throw new FileError("noServer", { name });
  }
  if (answer.status !== 200) throw new FileError("refused", { name, status: `${answer.status} ${answer.statusText}` });
  const made = await answer.json();
  return made.subfolder ? `${made.subfolder}/${made.name}` : made.name;
}

/** Put a picture that the server made into the input folder. @returns {Promise<string>} its name there */
async function keep(url) {
  let file;
  try {
    file = await (await fetch(url)).blob();
  } catch {
    throw new FileError("noServer", { name: "picture.png" });
  }
  return upload(file, "board_result.png");
}

/** The address of a file in the input folder, as a layer names it. */
function inputAddress(name) {
  const at = name.lastIndexOf("/");
  return address({ filename: name.slice(at + 1), subfolder: name.slice(0, Math.max(at, 0)), type: "input" });
}

/** The board as the server gets it: all strokes saved, all choices in words made. */
async function sent(editor) {
  await editor.saved();
  return editor.readable ? withWords(editor.value, resolved) : editor.value;
}

/** @returns {Promise<string[]>} a list of the server's; empty if it does not answer */
async function listed(route) {
  try {
    const answer = await api.fetchApi(route);
    return answer.status === 200 ? await answer.json() : [];
  } catch {
    return [];
  }
}

const loras = () => listed("/models/loras");

/** The embeddings, without the files beside them that hold a learnt word's keys and values. */
const embeddings = async () => (await listed("/embeddings")).filter((name) => !name.endsWith(".values"));

const mostBytes = () => api.getServerFeature?.("max_upload_size", 100 * 2 ** 20) ?? 100 * 2 ** 20;

function show(node, output) {
  const shown = output?.layer_board?.[0];
  if (!shown || !node.layerEditor) return;
  const layers = shown.layers.map(({ picture, ...layer }) => ({ ...layer, url: picture && address(picture) }));
  node.layerEditor.show({ ...shown, layers });
}

/** @returns {Set<object>} the nodes that something of `node` flows into, in its own graph */
function downstream(node) {
  const { graph } = node;
  const found = new Set();
  const open = [node];
  while (open.length) {
    for (const output of open.pop().outputs ?? [])
      for (const id of output.links ?? []) {
        const link = graph.links?.get?.(id) ?? graph.links?.[id];
        const next = link && graph.getNodeById(link.target_id);
        if (!next || found.has(next)) continue;
        found.add(next);
        open.push(next);
      }
  }
  return found;
}

/** @returns {object[]} the boards that are open, also in subgraphs */
function boards() {
  const root = app.rootGraph ?? app.graph;
  return [root, ...(root.subgraphs?.values() ?? [])].flatMap((graph) => graph.nodes).filter((node) => node.comfyClass === NODE);
}

/** Tell boards what a node made of them: pictures of nodes that are not ours are results. */
function heard({ detail }) {
  const { node: id, output } = detail;
  const { images, layer_attention: attention } = output ?? {};
  if (!images?.length && !attention) return;
  const path = String(id).split(":"); // of a node in a subgraph: the subgraph's node first
  for (const board of boards()) {
    const inner = board.graph.isRootGraph === false ? path.slice(1) : path.slice(0, 1);
    const made = [...downstream(board)].find((node) => inner.includes(String(node.id)));
    if (!made || !board.layerEditor) continue;
    if (attention) board.layerEditor.showAttention(attention.map(({ name, picture }) => ({ name, url: address(picture) })));
    if (attention || String(made.comfyClass ?? made.type).startsWith("LD_")) continue;
    board.properties[RESULT] = images[0];
    board.layerEditor.showResult(address(images[0]));
  }
}

app.registerExtension({
  name: "LayeredDiffusion.LayerBoard",
  init: prepare,
  setup() {
    api.addEventListener("executed", heard);
  },
  getCustomWidgets() {
    return {
      LD_BOARD(node, name) {
        const words = wordsOf(language(), WORDS);
        const editor = new Board({ words, onChange: () => remember(node), upload, keep, address: inputAddress, mostBytes, loras, embeddings });
        node.onDragOver = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");
        node.onDragDrop = async (event) => {
          await editor.addFiles([...event.dataTransfer.files]);
          return true;
        };
        return addEditor(node, name, editor, {
          type: "LD_BOARD", height: 420, onExecuted: (output) => show(node, output), send: () => sent(editor),
        });
      },
    };
  },
  nodeCreated(node) {
    if (node.comfyClass === NODE) growTo(node, [880, 640]);
  },
  loadedGraphNode(node) {
    if (node.comfyClass !== NODE) return;
    show(node, app.nodeOutputs?.[outputKey(node)]);
    if (node.properties?.[RESULT]) node.layerEditor.showResult(address(node.properties[RESULT]));
  },
});
