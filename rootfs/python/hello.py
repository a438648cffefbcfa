import os

import IPython
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import scipy.optimize

x = np.linspace(0, 2 * np.pi, 100)
frame = pd.DataFrame({"x": x, "y": np.sin(x)})
(amplitude,), _ = scipy.optimize.curve_fit(lambda x, a: a * np.sin(x), frame.x, frame.y)
assert abs(amplitude - 1) < 1e-6, amplitude

frame.plot(x="x", y="y")
plt.savefig("/tmp/plot.png")
with open("/tmp/plot.png", "rb") as plot:
    assert plot.read(8) == b"\x89PNG\r\n\x1a\n"
assert os.path.getsize("/tmp/plot.png") > 5000

assert "scatter" in go.Figure(go.Scatter(x=frame.x, y=frame.y)).to_json()
shell = IPython.core.interactiveshell.InteractiveShell()
shell.run_cell("answer = 6 * 7")
assert shell.user_ns["answer"] == 42
print("hello from python")
