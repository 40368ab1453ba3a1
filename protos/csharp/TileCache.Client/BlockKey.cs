using System;
using System.Diagnostics.CodeAnalysis;

namespace TileCache.Client
{
    /// <summary>A block of 32 x 32 cells: its zoom, and its cells' columns and rows divided by 32.</summary>
    [SuppressMessage("Design", "CA1067", Justification = "Equals(object) of a value type compares the fields.")]
    public struct BlockKey : IEquatable<BlockKey>
    {
        internal const int Bits = 5;

        internal BlockKey(int zoom, int x, int y)
        {
            Zoom = zoom;
            X = x;
            Y = y;
        }

        /// <summary>0 to 22.</summary>
        public int Zoom { get; }

        /// <summary>The column of its cells, divided by 32 and rounded down.</summary>
        public int X { get; }

        /// <summary>The row of its cells, divided by 32 and rounded down.</summary>
        public int Y { get; }

        /// <summary>Whether it is the same block.</summary>
        /// <param name="other">Another one.</param>
        /// <returns>True if all three numbers are the same.</returns>
        public bool Equals(BlockKey other)
        {
            return X == other.X && Y == other.Y && Zoom == other.Zoom;
        }

        /// <inheritdoc/>
        public override int GetHashCode()
        {
            return (((Zoom * 397) ^ X) * 397) ^ Y;
        }

        /// <summary>The block that a cell is in.</summary>
        internal static BlockKey Of(int zoom, int x, int y)
        {
            return new BlockKey(zoom, x >> Bits, y >> Bits);
        }
    }
}
