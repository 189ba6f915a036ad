"""Values: frozen, compared by content, valid by construction. Nothing here touches the world."""
