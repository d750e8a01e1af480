"""The other systems of the papers around ProGrad, one file each; nothing here is imported by the rest."""
