"""What kernels do on a GPU, in one command: `make gpu-check OUT=folder`.

check.py   builds, tests and times, within a budget of seconds; needs nothing but Python to start
bench.py   times the cases of cases.py beside dense layers; measure.py does one of them
caps.py    what the hardware allows at most
results.py rows, CSV, table, picture
"""
