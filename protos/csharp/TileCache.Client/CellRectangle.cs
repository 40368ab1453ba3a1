namespace TileCache.Client
{
    /// <summary>Cells of one zoom, ends included.</summary>
    internal struct CellRectangle
    {
        public CellRectangle(int xFrom, int xTo, int yFrom, int yTo)
        {
            XFrom = xFrom;
            XTo = xTo;
            YFrom = yFrom;
            YTo = yTo;
        }

        public int XFrom { get; }

        public int XTo { get; }

        public int YFrom { get; }

        public int YTo { get; }
    }
}
