#!/bin/bash
# Train one run on several nodes of a Slurm cluster, one process per GPU:
#   sbatch --nodes=2 --gpus-per-node=4 --ntasks-per-node=4 tools/launch_slurm.sh --config=... --workdir=/shared/run
# Every node must see --workdir, the config, the images and the weights under the same path.
#
# JAX assigns each task the GPU with its index on the node. All tasks of a node must see all of its GPUs, so do not use
# --gpus-per-task.
#SBATCH --job-name=flaxtl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=flaxtl-%j.log
# SIGTERM to the tasks, 60 s before the time limit: they finish their step and save.
#SBATCH --signal=TERM@60
set -u

STOPPED=143 # stopped by SIGTERM; progress is saved
LOST=69     # another process has died; the last checkpoint is kept
RESTARTS=10 # limit for a job that never finishes

# If one process fails, flaxtl ends the others itself, each with a message, so srun must not kill them first. Process 0
# writes the report after the others have ended.
srun --kill-on-bad-exit=0 --wait=0 flaxtl train --distributed "$@"
code=$?

if [[ $code == "$STOPPED" || $code == "$LOST" ]] && ((${SLURM_RESTART_COUNT:-0} < RESTARTS)); then
  echo "flaxtl ended with code $code; job $SLURM_JOB_ID is requeued and resumes from its last checkpoint"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
