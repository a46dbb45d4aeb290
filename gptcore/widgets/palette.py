"""The colours of all pictures of the course: Okabe and Ito's, by their names for them, which colour-blind readers tell apart.

Chapters and views draw what is compared in `BLUE` and `VERMILION`, and what is only there for orientation in `GREY`.
"""

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, GREY = "#E69F00", "#56B4E9", "#666666"
