namespace TileCache.Client
{
    /// <summary>How a replica reads its tiles.</summary>
    /// <typeparam name="TTile">A tile.</typeparam>
    internal interface ITileTraits<TTile>
    {
        /// <summary>Its <c>tile_uuid</c>.</summary>
        string IdOf(TTile tile);

        /// <summary>The column of its cell.</summary>
        int ColumnOf(TTile tile);

        /// <summary>The row of its cell.</summary>
        int RowOf(TTile tile);

        /// <summary>Whether a query returns it by default.</summary>
        bool IsUsable(TTile tile);

        /// <summary>Negative if the first of two tiles of a cell is the better one.</summary>
        int Compare(TTile first, TTile second);
    }
}
