#!/bin/bash
# Train one run on all workers of a Cloud TPU slice, one process per worker:
#   tools/launch_tpu_pod.sh TPU_NAME ZONE --config=... --workdir=/mnt/shared/run
# Every worker needs flaxtl[tpu], with its command on the PATH (or given by FLAXTL=...), and a shared file system that has
# --workdir, the config, the images and the weights under the same path.
#
# After exit code 143 (stopped, progress is saved) or 69 (another worker has died), run the same command to resume.
set -eu

if (($# < 3)); then
  echo "usage: $0 TPU_NAME ZONE --config=FILE --workdir=DIR [...]" >&2
  exit 2
fi
name=$1 zone=$2
shift 2

# A second shell parses the command on the worker, so every argument is quoted.
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="$(printf '%q ' "${FLAXTL:-flaxtl}" train --distributed "$@")"
