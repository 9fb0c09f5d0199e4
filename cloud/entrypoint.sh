#!/usr/bin/env bash
# Runs a script of the repository, or any other command, in the working folder:
#
#     entrypoint.sh train_lora.py --config configs/demo_lora.yaml
#     entrypoint.sh accelerate launch --config_file accelerate_configs/multi_gpu.yaml train_lora.py
#
# A .py or .yaml file that the working folder doesn't have is taken from the repository.
set -euo pipefail
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

words=()
for word in "$@"; do
  flag=""
  if [[ $word == --*=* ]]; then
    flag="${word%%=*}=" word="${word#*=}"
  fi
  if [[ $word == *.@(py|yaml) && ! -e $word && -f $repository/$word ]]; then
    word="$repository/$word"
  fi
  words+=("$flag$word")
done

if [[ ${words[0]:-} == *.py ]]; then
  words=(python3 "${words[@]}")
fi
exec "${words[@]}"
