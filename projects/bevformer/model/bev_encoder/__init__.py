"""From camera features to BEV features."""
