# Sourced by quickstart.sh and test.sh: makes .venv (or $PPSR2Q_VENV) once, installs ppsr2q with its CPU and test
# extras, and activates it. PYTHON names the interpreter (3.9 to 3.13), PPSR2Q_EXTRAS other extras ("gpu,test").
venv=${PPSR2Q_VENV:-.venv}
if [ ! -f "$venv/ppsr2q-installed" ]; then
    "${PYTHON:-python3}" -m venv "$venv"
    source "$venv/bin/activate"
    python -m pip install --quiet --upgrade pip
    python -m pip install --quiet -e ".[${PPSR2Q_EXTRAS:-cpu,test}]"
    touch "$venv/ppsr2q-installed"
else
    source "$venv/bin/activate"
fi
