"""Our models inside vLLM. Nothing here is imported unless vLLM is: `plugin.register` is its entry point."""
