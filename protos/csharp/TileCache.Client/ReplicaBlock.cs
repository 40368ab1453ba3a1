using System.Collections.Generic;
using System.Linq;

namespace TileCache.Client
{
    /// <summary>The tiles of a block of 32 x 32 cells in one version. Never changed.</summary>
    internal sealed class ReplicaBlock<TTile>
    {
        public const int CellCount = 1 << (2 * BlockKey.Bits);

        private const int Mask = (1 << BlockKey.Bits) - 1;

        public ReplicaBlock(string version, TTile[][] allTiles, TTile[][] usableTiles)
        {
            Version = version;
            AllTiles = allTiles;
            UsableTiles = usableTiles;
        }

        public string Version { get; }

        /// <summary>For each cell, row by row, its tiles, the best one first.</summary>
        public TTile[][] AllTiles { get; }

        /// <summary>The same with those only that a query returns by default.</summary>
        public TTile[][] UsableTiles { get; }

        public IEnumerable<TTile> Tiles
        {
            get { return AllTiles.SelectMany(tiles => tiles); }
        }

        /// <summary>The index of a cell among those of its block.</summary>
        public static int IndexOf(int x, int y)
        {
            return ((y & Mask) << BlockKey.Bits) | (x & Mask);
        }
    }
}
