"""Networks on packed batches: attention, families, loading and export. Importing it registers our own classes."""

from bertillery.models import families as families
from bertillery.models import joint_spans as joint_spans
