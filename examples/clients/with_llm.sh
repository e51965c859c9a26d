#!/bin/sh
# `llm`, the command line: a prompt, its answer, and one with a form. `pip install llm`, then `sh with_llm.sh MODEL [URL]`.
set -eu
model=$1 url=${2:-http://127.0.0.1:8000/v1}
LLM_USER_PATH=${LLM_USER_PATH:-$(mktemp -d)}
export LLM_USER_PATH
cat > "$LLM_USER_PATH/extra-openai-models.yaml" <<YAML
- model_id: $model
  model_name: $model
  api_base: $url
  supports_tools: true
  supports_schema: true
YAML
llm keys set openai --value any
llm -m "$model" -o temperature 0 -o max_tokens 24 "What is the capital of France?"
llm -m "$model" -o temperature 0 -o max_tokens 100 --schema "name, country" "Where is the Eiffel tower?"
