#!/bin/bash
# One run on all workers of a Cloud TPU slice, one process per worker:
#   tools/launch_tpu_pod.sh TPU_NAME ZONE --config=... --workdir=/mnt/shared/run
# On every worker flaxtl[tpu] is installed, its command on the PATH (or named by FLAXTL=...), and --workdir, the config,
# the images and the weights lie under the same path, on a file system that all of them mount.
#
# Exit code 143 (told to end, everything is saved) or 69 (another worker was gone): the same command goes on from the
# last checkpoint.
set -eu

if (($# < 3)); then
  echo "usage: $0 TPU_NAME ZONE --config=FILE --workdir=DIR [...]" >&2
  exit 2
fi
name=$1 zone=$2
shift 2

# One more shell reads the command on the other side: every argument is quoted for it.
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="$(printf '%q ' "${FLAXTL:-flaxtl}" train --distributed "$@")"
