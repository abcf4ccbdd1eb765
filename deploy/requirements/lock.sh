#!/usr/bin/env bash
# Write the lock files: what each image installs, with hashes, for every Python and machine. Versions are those of
# constraints.txt; what is not pinned there is the newest that fits.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=deploy/requirements
lock() { # FILE INPUT...
  local file=$1; shift
  "${UV:-uv}" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
    --custom-compile-command 'make lock' --constraints constraints.txt --output-file "$out/$file" "$@"
}
lock build.txt - <<<hatchling
lock api.txt pyproject.toml --extra app --extra s3 --extra tracing
lock keeper.txt pyproject.toml --extra worker --extra s3 --extra tracing
lock worker-cuda.txt pyproject.toml "$out/torch.txt" --extra worker --extra engine --extra s3 --extra tracing
# The CPU's torch is another build with other hashes, on an index of its own (torch.txt); the rest is the same.
awk '/^[a-z]/ { keep = !/^(torch|torchvision|triton|cuda-|nvidia-)/ } keep || /^#/' "$out/worker-cuda.txt" >"$out/worker.txt"
