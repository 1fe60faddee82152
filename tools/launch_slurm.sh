#!/bin/bash
# One run on several machines of a Slurm cluster, one process per GPU:
#   sbatch --nodes=2 --gpus-per-node=4 --ntasks-per-node=4 tools/launch_slurm.sh --config=... --workdir=/shared/run
# --workdir, the config, the images and the weights lie where every node sees them under the same path.
#
# jax gives each task the GPU of its number on the node: all tasks of a node must see all of its GPUs, so do not ask
# for --gpus-per-task.
#SBATCH --job-name=flaxtl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=flaxtl-%j.log
# SIGTERM to the tasks, 60 s before the time limit: they finish their step and save.
#SBATCH --signal=TERM@60
set -u

STOPPED=143 # told to end by SIGTERM; everything is saved
LOST=69     # another process was gone; the last checkpoint is there
RESTARTS=10 # a job that fails again and again does not come back for ever

# flaxtl ends the other processes itself when one fails, each with its reason: srun shall not be quicker. Process 0
# writes the report when the others have ended.
srun --kill-on-bad-exit=0 --wait=0 flaxtl train --distributed "$@"
code=$?

if [[ $code == "$STOPPED" || $code == "$LOST" ]] && ((${SLURM_RESTART_COUNT:-0} < RESTARTS)); then
  echo "flaxtl ended with code $code; job $SLURM_JOB_ID is queued again and goes on from its last checkpoint"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
