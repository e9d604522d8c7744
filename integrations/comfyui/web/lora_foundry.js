// Shows at each "Train a character" node how its run comes along: the server of ComfyUI passes on what the run says.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const TRAIN = "LoraFoundryTrainCharacter";

function show(node, text) {
  let widget = node.widgets?.find((each) => each.name === "progress");
  if (!widget) {
    const area = document.createElement("pre");
    area.style.cssText = "margin:0;padding:4px;white-space:pre-wrap;overflow:auto;font-size:11px";
    widget = node.addDOMWidget("progress", "text", area, { serialize: false });
  }
  widget.element.textContent = text; // as text: a run's words are no markup
  node.setDirtyCanvas?.(true, true);
}

app.registerExtension({
  name: "lora-foundry",
  setup() {
    api.addEventListener("lora_foundry.progress", ({ detail }) => {
      const node = app.graph?.getNodeById?.(Number(detail.node));
      if (node?.type === TRAIN) show(node, detail.text);
    });
  },
  beforeRegisterNodeDef(kind, data) {
    if (data.name !== TRAIN) return;
    const executed = kind.prototype.onExecuted;
    kind.prototype.onExecuted = function (message) {
      executed?.apply(this, arguments);
      if (message?.text) show(this, message.text.join("\n"));
    };
  },
});
