#!/usr/bin/env bash
# Train the default model from nothing, or go on where it was interrupted: the same command again.
#
#   make train-default WORK=folder NOTES=folder POP909=folder
#
# WORK       everything that is made: sources, fonts, shards, the run; kept between calls
# NOTES      recorded single notes with an index.tsv (docs/training.md); more sounds are fetched from npm and Debian, once (docs/data.md)
# POP909     a clone of github.com/music-x-lab/POP909-Dataset
# SCORES     a folder of scores in MusicXML or Humdrum to play as well, such as a clone of github.com/OpenScore/Lieder; may be left out
# PYTHON     the interpreter
# PROCESSES  of one core each, which render and share each batch; 2 or more divide a batch of 32
# STEPS      in all, and SHARDS of 21 minutes each (82 MB) for an eighth of them: fewer for a rehearsal
# DTYPE      bfloat16 where the processor has instructions for it (lscpu: avx512_bf16), which is nearly twice as fast there as float32
set -euo pipefail
: "${WORK:?names the folder for everything that is made}" "${NOTES:?names the folder of recorded notes}"
: "${POP909:?names the clone of POP909}" "${PYTHON:=python}" "${PROCESSES:=1}" "${STEPS:=32000}" "${SHARDS:=128}" "${DTYPE:=float32}" "${SCORES:=}"
for number in "PROCESSES $PROCESSES" "STEPS $STEPS" "SHARDS $SHARDS"; do
  [[ $number =~ ^[A-Z]+\ [1-9][0-9]{0,8}$ ]] || { echo "error: ${number/ /=} must be a whole number from 1 up" >&2; exit 2; }
done
[ $((32 % PROCESSES)) = 0 ] || { echo "error: PROCESSES=$PROCESSES must divide a batch of 32: 1, 2, 4, 8, 16 or 32" >&2; exit 2; }
[[ $DTYPE =~ ^(float32|bfloat16)$ ]] || { echo "error: DTYPE=$DTYPE must be float32 or bfloat16" >&2; exit 2; }
[ "$STEPS" -ge 16 ] || { echo "error: STEPS=$STEPS are too few: 16 at least" >&2; exit 2; }
# the step of the last save; a save that was killed between its two renames has left the one before as .last.writing-PID-old
reached() {
  "$PYTHON" -c '
import glob, json, sys
saves = glob.glob(sys.argv[1] + "/last") + glob.glob(sys.argv[1] + "/.last.writing-*-old")
print(max([0, *(json.load(open(save + "/config.json"))["step"] for save in saves)]))' "$WORK/run" 2>/dev/null || echo 0
}
# nothing is rendered anew for a run that has ended
[ "$(reached)" -lt "$STEPS" ] || { echo "$WORK/run has its $STEPS steps"; exit 0; }
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
mt3() { "$PYTHON" -m mt3_common.cli.mt3 "$@"; }

sources=$WORK/sources
[ -e "$sources/sources.json" ] || mt3 data sources "$sources" --pop909 "$POP909" --mma 1 ${SCORES:+--scores "$SCORES"}
[ -z "$SCORES" ] || [ -d "$sources/midi/scores" ] || { echo "error: $sources was made without SCORES: remove that folder, or leave SCORES out" >&2; exit 2; }
for split in train heldout; do
  [ -e "$WORK/fonts/$split" ] && continue
  # begun anew where it was interrupted
  rm -rf "$WORK/fonts/.$split"
  mt3 data fonts "$NOTES" "$WORK/fonts/.$split" --split $split
  mv "$WORK/fonts/.$split" "$WORK/fonts/$split"
done

[ -e "$WORK/sounds/hydrogen/installed.json" ] || mt3 data install --home "$WORK/sounds" tonejs salamander avldrums forzee hydrogen

songs=(--midi "$sources"/midi/freedoom "$sources"/midi/openmsx "$sources"/midi/pop909)
banks=("$sources"/soundfonts/{FluidR3Mono_GM.sf3,TimGM6mb.sf2,GeneralUser-v1.47.sf2})
# second players of instruments; not tonejs's saxophone, which is held out, nor its electric guitar and bass, which may be
players=("$WORK"/sounds/tonejs/{bassoon,cello,clarinet,contrabass,flute,french-horn,guitar-acoustic,guitar-nylon,harmonium,harp,organ,piano}.sf2)
players+=("$WORK"/sounds/tonejs/{trombone,trumpet,tuba,violin,xylophone}.sf2 "$WORK/sounds/salamander/salamander.sf2")
kits=("$WORK"/sounds/{avldrums,forzee,hydrogen}/*.sf2)
preset=$("$PYTHON" -c 'from mt3_common.training.config import PRESETS; print(PRESETS / "default.json")')
# shards NAME SPLIT SEED COUNT EXAMPLES RECIPE FONT...: what is there is left alone
shards() {
  mt3 data shards "$WORK/shards/$1" "${songs[@]}" --config "$preset" --split "$2" --seed "$3" --shards "$4" --examples "$5" \
    --recipe "$6" --workers "$PROCESSES" --fonts "${@:7}"
}
# unseen songs on an unseen General MIDI bank, and on unseen recorded instruments
shards validation-bank validation 101 2 24 '{"damage": false, "settle": 0.02}' "$sources/soundfonts/sf_GMbank.sf2"
shards validation-notes validation 102 2 24 '{"settle": 0.02, "solo": 0.3, "band": 0.3}' "$WORK"/fonts/heldout/*.sf2
clean='{"piano": 0.8, "solo": 0.2, "damage": false, "settle": 0.02}'
shards clean train 31 6 32 "$clean" "${banks[@]}" "$WORK"/fonts/train/*.sf2
# a recipe that names one kind of example has no other that it does not name
mixed='{"settle": 0.02, "piano": 0.28, "band": 0.24, "solo": 0.22, "drums": 0.12, "dense": 0.09, "silence": 0.01, "tones": 0.04, "detached": 0.3, "register": 0.95, "pedal": 0.35, "takes": 0.5, "reflections": 0.6, "media": 0.3}'
fonts=("${banks[@]}" "$WORK"/fonts/train/*.sf2 "${players[@]}" "${kits[@]}")
songs+=("$sources/midi/mma")
[ -z "$SCORES" ] || songs+=("$sources/midi/scores")

# Of the losses those that teach the encoder come first, alone; then also those that teach the decoder where to look, for a quarter of the
# steps in all; from then on the decoder learns from the tokens, and the choice of instruments weighs more. The rate falls to 0 in the
# last quarter (checkpoints/log.md, Weights of the losses).
encoder_alone="\"auxiliary_steps\": $((STEPS / 16))"
later='"auxiliary": 0.0125, "classes": 32, "alignment": 0, "contents": 0, "programs": 3'
# train SETTINGS DATA...
train() {
  echo "{\"training\": {\"dtype\": \"$DTYPE\", $encoder_alone, $1}}" > "$WORK/settings.json"
  local start=("$PYTHON")
  [ "$PROCESSES" = 1 ] || start+=(-m torch.distributed.run --standalone --nproc-per-node "$PROCESSES")
  start+=(-m torch_mt3.train "$WORK/run" --preset default --config "$WORK/settings.json" --validation "$WORK/shards/validation-notes")
  [ "$PROCESSES" = 1 ] || start+=(--distributed)
  "${start[@]}" --data "${@:2}"
}
# Each eighth of the steps has new shards: a segment that comes a second time teaches next to nothing (checkpoints/log.md,
# Means and fresh segments).
for eighth in 1 2 3 4 5 6; do
  end=$((STEPS * eighth / 8))
  [ "$(reached)" -lt "$end" ] || continue
  rm -rf "$WORK/shards/mixed-$((eighth - 1))"
  shards "mixed-$eighth" train $((1000 + eighth)) "$SHARDS" 64 "$mixed" "${fonts[@]}"
  losses=
  [ "$eighth" -le 2 ] || losses=", $later"
  train "\"steps\": $end, \"schedule\": \"constant\"$losses" "$WORK/shards/clean" "$WORK"/shards/mixed-*
done
rm -rf "$WORK/shards/mixed-6"
shards mixed-7 train 1007 $((2 * SHARDS)) 64 "$mixed" "${fonts[@]}"
train "\"steps\": $STEPS, \"decay_from\": 0.75, $later" "$WORK"/shards/mixed-*
