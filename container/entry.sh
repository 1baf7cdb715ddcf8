#!/bin/sh
# What the container is given are words for vitp, unless they name a program: schedulers give `bash -c …`, and AWS Batch
# cannot leave out the entry point.
case "${1-}" in
  bash | sh | python | torchrun | vitp) exec "$@" ;;
  *) exec vitp "$@" ;;
esac
