#!/bin/bash
# Train a sweep as a Slurm job array; each task trains one shard of the runs on its own GPU:
#   sbatch --array=1-4 tools/launch_sweep_slurm.sh --config=... --workdir=/shared/sweep --grid config.head.units=64,128
# Every node must see --workdir, the config, the images and the weights under the same path. The array starts at 1.
# The task that ends last writes the results of all. Submit the same command again to train what is missing.
#SBATCH --job-name=flaxtl-sweep
#SBATCH --array=1-4
#SBATCH --gpus=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=flaxtl-sweep-%A-%a.log
# SIGTERM to this script alone, 60 s before the time limit: flaxtl forwards it to its run, which finishes its step.
#SBATCH --signal=B:TERM@60
set -u

STOPPED=143 # stopped by SIGTERM; progress is saved
RESTARTS=10 # limit for a job that never finishes

flaxtl sweep --shard="$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" "$@" &
sweep=$!
trap 'kill -TERM "$sweep"' TERM
wait "$sweep"
code=$?
while kill -0 "$sweep" 2>/dev/null; do # the signal ended the wait, not the sweep
  wait "$sweep"
  code=$?
done

if [[ $code == "$STOPPED" ]] && ((${SLURM_RESTART_COUNT:-0} < RESTARTS)); then
  echo "flaxtl ended with code $code; task $SLURM_ARRAY_TASK_ID is requeued and resumes"
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$code"
