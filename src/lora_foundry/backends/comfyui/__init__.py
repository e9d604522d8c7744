"""Pictures from a ComfyUI server: a client for its wire protocol, workflows, and the Generator made of
both."""
