#!/bin/sh
# A runner that computes nothing: one block, one file. What is left is what the service itself costs.
output=$(sed 's/.*"output": "\([^"]*\)".*/\1/' "$1")
mkdir "$output" && printf x > "$output/model.safetensors"
x=2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881
echo '{"type": "phase", "phase": "fitting", "total": 1}'
echo '{"type": "block", "block": 0, "blocks": 1, "seconds": 0.0, "seconds_by_phase": {}, "groups": [], "files": []}'
echo "{\"type\": \"finished\", \"output\": \"$output\", \"files\": [{\"name\": \"model.safetensors\", \"bytes\": 1, \"sha256\": \"$x\"}]}"
