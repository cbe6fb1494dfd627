"""Starting policies as files: tiny ones, folders, hubs; chat templates, tool calls, LoRA."""
