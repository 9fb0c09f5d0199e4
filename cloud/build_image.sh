#!/usr/bin/env bash
# Builds the Docker image of this repository (docs/docker.md):
#
#     cloud/build_image.sh                                   # accelerate-finetuning-scripts:latest
#     cloud/build_image.sh my-registry/trainer:v2 --push     # what follows the tag goes to `docker build`
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tag=accelerate-finetuning-scripts:latest
if [[ $# -gt 0 && $1 != -* ]]; then
  tag=$1
  shift
fi
if ! command -v docker >/dev/null; then
  echo "build_image.sh: error: there is no \`docker\`; install Docker Engine 25 or newer" >&2
  exit 1
fi
revision=$(git rev-parse HEAD 2>/dev/null || true)
if [[ -n $revision && -n $(git status --porcelain) ]]; then
  revision+=+changes
fi
exec docker build --file cloud/Dockerfile --tag "$tag" --build-arg "REVISION=$revision" "$@" .
