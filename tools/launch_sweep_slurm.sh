#!/bin/bash
# A sweep as an array of Slurm jobs, each of which trains its share of the runs on a GPU of its own:
#   sbatch --array=1-4 tools/launch_sweep_slurm.sh --config=... --workdir=/shared/sweep --grid config.head.units=64,128
# --workdir, the config, the images and the weights lie where every node sees them under the same path. The array
# counts from 1. Whoever ends last writes the table of all; the same line again trains what is missing.
#SBATCH --job-name=flaxtl-sweep
#SBATCH --array=1-4
#SBATCH --gpus=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=flaxtl-sweep-%A-%a.log
# SIGTERM to this script alone, 60 s before the time limit: flaxtl passes it on to its run, which finishes its step.
#SBATCH --signal=B:TERM@60
set -u

STOPPED=143 # told to end by SIGTERM; everything is saved
RESTARTS=10 # a job that fails again and again does not come back for ever

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
  echo "flaxtl ended with code $code; task $SLURM_ARRAY_TASK_ID is queued again and goes on from where it was"
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$code"
