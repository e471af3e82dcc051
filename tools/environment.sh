# Sourced by quickstart.sh and test.sh: makes .venv (or $PPSR2Q_VENV), installs ppsr2q with its CPU and test extras, and
# activates it; the next time it only activates. PYTHON names the interpreter (3.9 to 3.13), PPSR2Q_EXTRAS other extras
# ("gpu,test"); when one of them or setup.py changes, the environment is made again. One that lies there already and was
# not made here is left alone.
venv=${PPSR2Q_VENV:-.venv}
python=${PYTHON:-python3}
wanted="$python ${PPSR2Q_EXTRAS:-cpu,test} $(cksum < setup.py)"
if [ "$(cat "$venv/ppsr2q-installed" 2>/dev/null)" != "$wanted" ]; then
    "$python" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info < (3, 14))' || {
        echo "error: $python is $("$python" --version 2>&1); PaddlePaddle needs Python 3.9 to 3.13: set PYTHON" >&2
        exit 2
    }
    if [ -f "$venv/ppsr2q-installed" ]; then
        rm -rf "$venv"
    elif [ -e "$venv" ]; then
        echo "error: $venv was not made by this script: set PPSR2Q_VENV to another folder, or remove it" >&2
        exit 2
    fi
    "$python" -m venv "$venv"
    touch "$venv/ppsr2q-installed"  # an interrupted installation begins again
    source "$venv/bin/activate"
    python -m pip install --quiet --upgrade pip
    python -m pip install --quiet -e ".[${PPSR2Q_EXTRAS:-cpu,test}]"
    echo "$wanted" > "$venv/ppsr2q-installed"
else
    source "$venv/bin/activate"
fi
